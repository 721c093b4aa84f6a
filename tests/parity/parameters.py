"""What mergekit evaluates the parameters of a recipe to, for each tensor of its plan.

Each entry is one recipe, in YAML as mergekit reads it. `tensors` are the output tensors (a selection, in name order of the
plan); all other lists run along it:

    sources   per model: the tensor that is read, null where the model is no source
    shared    per shared parameter: its value
    models    per model and parameter of its own: its value, null where the model is no source

An entry with `error` instead is one that mergekit refuses.
"""
import json
import os
import tempfile

import numpy as np
import yaml
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import _model_out_config
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

from parameter_recipes import RECIPES

SELECTED = ("embed_tokens", "input_layernorm", "q_proj", "up_proj", "down_proj", "model.norm", "lm_head")
MODELS = ("base", "a", "b")


def names(layers):
    """All tensors of a llama."""
    yield "model.embed_tokens.weight"
    for layer in range(layers):
        for part in ("input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
                     "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            yield f"model.layers.{layer}.{part}.weight"
    yield "model.norm.weight"
    yield "lm_head.weight"


def write_model(folder, layers, write):
    """A llama whose tensors have one element: plans only look at names."""
    os.makedirs(folder)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers, "hidden_size": 8,
              "intermediate_size": 16, "vocab_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    write(os.path.join(folder, "model.safetensors"), {name: np.ones(1, np.float32) for name in names(layers)})


def plan(text, folder):
    """The merge tasks of a recipe, one per output tensor; models are below `folder`."""
    os.chdir(folder)
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions(quiet=True)
    LoaderCache().loaders.clear()
    LoaderCache().setup(options)
    arch = get_architecture_info(config, options)
    planner = MergePlanner(config, arch, options, _model_out_config(config, arch))
    planner._plan()
    return [(weight.name, task) for weight, task in planner._tensors]


def golden(text, folder):
    tasks = [(name, task) for name, task in plan(text, folder) if any(part in name for part in SELECTED)]
    shared, models, sources = {}, {}, {}
    for at, (_, task) in enumerate(tasks):
        def put(into, key, value):
            into.setdefault(key, [None] * len(tasks))[at] = value
        for key, value in sorted(task.parameters.items()):
            put(shared, key, value)
        for model, weight in sorted(task.gather_tensors.weight_info.items(), key=lambda item: str(item[0])):
            put(sources, str(model), weight.name)
        for model, own in sorted(task.input_parameters.items(), key=lambda item: str(item[0])):
            for key, value in sorted(own.items()):
                put(models.setdefault(str(model), {}), key, value)
    return {"tensors": [name for name, _ in tasks], "sources": sources, "shared": shared, "models": models}


def goldens(write):
    found, here = [], os.getcwd()
    with tempfile.TemporaryDirectory() as work:
        for layers in {layers for layers, _ in RECIPES.values()}:
            for model in MODELS:
                write_model(os.path.join(work, str(layers), model), layers, write)
        for case, (layers, text) in RECIPES.items():
            entry = {"case": case, "layers": layers, "recipe": text}
            try:
                entry |= golden(text, os.path.join(work, str(layers)))
            except (RuntimeError, ValueError) as error:
                entry["error"] = " ".join(str(error).splitlines()[:2])
            found.append(entry)
        os.chdir(here)
    return found
