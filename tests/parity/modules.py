"""Recipes with several `modules`: small vision-language models, by mergekit and by reflow.

Names, modules and numbers of layers are those of mergekit's own table of architectures.
"""
import json
import logging
import os

import torch
from mergekit.architecture.json_definitions import NAME_TO_ARCH
from safetensors.torch import save_file
from transformers import AutoConfig

HIDDEN, MLP, VOCAB = 8, 12, 16
TEXT = {"num_hidden_layers": 3, "hidden_size": HIDDEN, "intermediate_size": MLP, "vocab_size": VOCAB, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
VISION = {"num_hidden_layers": 2, "depth": 2, "hidden_size": HIDDEN, "intermediate_size": MLP, "num_attention_heads": 2}
# The class, its type, and those of its parts.
FAMILIES = {
    "gemma3": ("Gemma3ForConditionalGeneration", "gemma3_text", "siglip_vision_model"),
    "mistral3": ("Mistral3ForConditionalGeneration", "mistral", "pixtral"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl_text", "qwen2_5_vl"),
}

CASES = {
    "models": """\
merge_method: linear
modules:
  text_decoder:
    models: [{model: base, parameters: {weight: 1}}, {model: a, parameters: {weight: [0, 1]}}]
  multi_modal_projector:
    models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]
  vision_tower:
    models: [{model: b, parameters: {weight: [1, 0.5]}}, {model: base, parameters: {weight: 1}}]
    parameters: {normalize: false}
dtype: float32
""",
    "slices": """\
merge_method: task_arithmetic
base_model: base
modules:
  text_decoder:
    slices:
      - sources: [{model: base, layer_range: [0, 2]}, {model: a, layer_range: [1, 3], parameters: {weight: [0, 1]}}]
      - sources: [{model: base, layer_range: [1, 3]}, {model: b, layer_range: [0, 2], parameters: {weight: 0.5}}]
  multi_modal_projector: {models: [{model: a, parameters: {weight: 1}}]}
  vision_tower: {models: [{model: b}], parameters: {weight: 0.25}}
dtype: float32
""",
}
# A unit in the last place of linear; task_arithmetic is equal.
ALLOWED = {"models": 2.0**-23, "slices": 0.0}


def write(folder, family):
    """Writes base, a and b."""
    architecture, text, vision = FAMILIES[family]
    config = {"architectures": [architecture], "model_type": family, "torch_dtype": "float32",
              "text_config": TEXT | {"model_type": text}, "vision_config": VISION | {"model_type": vision}}
    for number, model in enumerate(("base", "a", "b")):
        path = os.path.join(folder, model)
        os.makedirs(path)
        with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
        tensors = {}
        for at, weight in enumerate(NAME_TO_ARCH[architecture][0].all_weights(AutoConfig.from_pretrained(path))):
            random = torch.Generator().manual_seed(1000 * number + at)
            rows = VOCAB if weight.vocabulary_axis == 0 else HIDDEN
            tensors[weight.name] = torch.randn((rows, HIDDEN), generator=random)
        save_file(tensors, os.path.join(path, "model.safetensors"), {"format": "pt"})


def layers(folder):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        return json.load(file)["text_config"]["num_hidden_layers"]


def check(work, reflow, with_mergekit, load):
    """(name, whether both agree, words) for each family and recipe."""
    for family in FAMILIES:
        folder = os.path.join(work, "modules", family)
        write(folder, family)
        os.chdir(folder)
        for case, recipe in CASES.items():
            path = f"{case}.yml"
            with open(path, "w", encoding="utf-8") as file:
                file.write(recipe)
            refused = reflow(path, f"{case}-reflow")
            if refused is not None:
                yield f"{family}-{case}", False, refused.splitlines()[0]
                continue
            # It complains about tokenizers, which these models have none of.
            logging.disable(logging.CRITICAL)
            with_mergekit(recipe, f"{case}-mergekit")
            logging.disable(logging.WARNING)
            ours, theirs = load(f"{case}-reflow"), load(f"{case}-mergekit")
            if sorted(ours) != sorted(theirs):
                yield f"{family}-{case}", False, f"tensors: {sorted(set(ours) ^ set(theirs))[:4]}"
                continue
            counts = layers(f"{case}-reflow"), layers(f"{case}-mergekit")
            far = max(((ours[n] - theirs[n]).abs() / theirs[n].abs().clamp(min=1)).max().item() for n in theirs)
            passed = far <= ALLOWED[case] and counts[0] == counts[1]
            yield f"{family}-{case}", passed, f"{len(ours)} tensors, {counts[0]} layers, apart by {far:g} at most"
        os.chdir(work)
