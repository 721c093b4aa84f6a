"""Merges by slices: what mergekit makes of small llamas whose layers are put together in other ways.

Models base, a and b, in float32, tensors named MODEL/TENSOR; results are named CASE/TENSOR. Recipes name the models as they are.
"""
import json
import os
import tempfile

import numpy as np
import yaml
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors import safe_open

import family

HIDDEN, MLP, VOCAB, LAYERS = 8, 12, 16, 6
MODELS = ("base", "a", "b")
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": HIDDEN,
          "intermediate_size": MLP, "vocab_size": VOCAB, "num_attention_heads": 2, "num_key_value_heads": 1,
          "torch_dtype": "float32", "tie_word_embeddings": False}

CASES = {
    # The form of most recipes: examples/gradient-slerp.yml, with other models.
    "slerp": """\
slices:
  - sources:
      - model: a
        layer_range: [0, 6]
      - model: b
        layer_range: [0, 6]
merge_method: slerp
base_model: a
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: float32
""",
    # examples/orcamini-platy-44layer.yml.
    "passthrough": """\
slices:
  - sources:
    - model: a
      layer_range: [0, 4]
  - sources:
    - model: b
      layer_range: [3, 6]
merge_method: passthrough
dtype: float32
""",
    "passthrough-scale": """\
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources:
      - model: b
        layer_range: [1, 4]
        parameters:
          scale:
            - {filter: o_proj, value: 0}
            - {filter: layers.2., value: 0.5}
            - {filter: down_proj, value: [0.25, 2]}
            - {value: 1}
  - sources: [{model: a, layer_range: [5, 6]}]
merge_method: passthrough
dtype: float32
""",
    "linear-other-ranges": """\
slices:
  - sources:
      - {model: a, layer_range: [0, 3], parameters: {weight: [0.2, 0.8]}}
      - {model: b, layer_range: [2, 5], parameters: {weight: 0.3}}
  - sources:
      - {model: b, layer_range: [1, 3]}
      - {model: base, layer_range: [4, 6], parameters: {weight: {filter: layers.5., value: 2}}}
    parameters: {weight: 0.6, normalize: false}
merge_method: linear
parameters: {weight: 1}
dtype: float32
""",
    "ties-bases": """\
merge_method: ties
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 3]}
      - {model: a, layer_range: [0, 3], parameters: {weight: 0.6}}
      - {model: b, layer_range: [3, 6], parameters: {weight: 0.4}}
    parameters: {density: 0.4}
  - sources:
      - {model: a, layer_range: [3, 6], parameters: {weight: [0.2, 0.7], density: 0.6}}
      - {model: b, layer_range: [3, 6]}
    base_model: b
dtype: float32
""",
    "module": """\
merge_method: task_arithmetic
base_model: base
modules:
  default:
    slices:
      - sources:
          - {model: base, layer_range: [0, 5]}
          - {model: a, layer_range: [1, 6], parameters: {weight: {filter: mlp, value: [0.1, 0.9]}}}
    parameters: {weight: 0.4}
parameters: {lambda: {filter: layers.4., value: 1.3}}
dtype: float32
""",
}


def shapes():
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (HIDDEN,)
        yield at + "post_attention_layernorm.weight", (HIDDEN,)
        for part, rows in (("q", HIDDEN), ("k", HIDDEN // 2), ("v", HIDDEN // 2), ("o", HIDDEN)):
            yield f"{at}self_attn.{part}_proj.weight", (rows, HIDDEN)
        for part, shape in (("gate", (MLP, HIDDEN)), ("up", (MLP, HIDDEN)), ("down", (HIDDEN, MLP))):
            yield f"{at}mlp.{part}_proj.weight", shape
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def models():
    """{model: {tensor: float32 array}}"""
    made = {model: {} for model in MODELS}
    for at, (name, shape) in enumerate(shapes()):
        base = (np.random.default_rng([20241127, at]).standard_normal(np.prod(shape)) * 0.05).astype(np.float32)
        for number, model in enumerate(MODELS):
            random = np.random.default_rng([20241128, at, number])
            values = base if model == "base" else family.expert(random, base, 5e-3)
            made[model][name] = values.reshape(shape)
    return made


def merged(write):
    """(inputs, cases, results): tensors of all models, the cases with what config.json says, and merged tensors."""
    inputs, listed, results = models(), [], {}
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as work:
        for model, tensors in inputs.items():
            os.makedirs(os.path.join(work, model))
            write(os.path.join(work, model, "model.safetensors"), tensors)
            with open(os.path.join(work, model, "config.json"), "w", encoding="utf-8") as file:
                json.dump(CONFIG, file)
        os.chdir(work)
        for case, text in CASES.items():
            LoaderCache().loaders.clear()
            options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), case, options, config_source=text)
            with safe_open(os.path.join(case, "model.safetensors"), "pt") as file:
                for name in file.keys():
                    results[f"{case}/{name}"] = file.get_tensor(name).numpy()
            with open(os.path.join(case, "config.json"), encoding="utf-8") as file:
                layers = json.load(file)["num_hidden_layers"]
            listed.append({"case": case, "layers": layers, "recipe": text})
        os.chdir(here)
    return {f"{m}/{n}": x for m, tensors in inputs.items() for n, x in tensors.items()}, listed, results
