"""A llama of six layers and three experts for the live comparison, stored in f32 and, rounded, in bf16."""
import json
import os
import shutil

import numpy as np

import family
from make_golden import safetensors

HIDDEN, MLP, VOCAB, LAYERS = 64, 176, 128, 6
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
             "chat_template.jinja")


def shapes():
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (HIDDEN,)
        yield at + "post_attention_layernorm.weight", (HIDDEN,)
        for part, rows in (("q", HIDDEN), ("k", HIDDEN // 2), ("v", HIDDEN // 2), ("o", HIDDEN)):
            yield f"{at}self_attn.{part}_proj.weight", (rows, HIDDEN)
        yield at + "mlp.gate_proj.weight", (MLP, HIDDEN)
        yield at + "mlp.up_proj.weight", (MLP, HIDDEN)
        yield at + "mlp.down_proj.weight", (HIDDEN, MLP)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def write_shards(folder, tensors, count):
    """Deals the tensors to shards, as other tools do with another number for each model."""
    weight_map, names = {}, sorted(tensors)
    for k in range(count):
        name = f"model-{k + 1:05}-of-{count:05}.safetensors"
        part = {n: tensors[n] for n in names[k::count]}
        weight_map |= dict.fromkeys(part, name)
        with open(os.path.join(folder, name), "wb") as file:
            file.write(safetensors(part, {"format": "pt"}))
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        json.dump(index, file)


def write(work, fixtures):
    """Writes KIND/MODEL below `work`."""
    with open(os.path.join(fixtures, "llama", "base", "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    config |= {"hidden_size": HIDDEN, "intermediate_size": MLP, "vocab_size": VOCAB, "num_hidden_layers": LAYERS}
    for number, model in enumerate(("base", "expert1", "expert2", "expert3")):
        tensors = {}
        for at, (name, shape) in enumerate(shapes()):
            random = np.random.default_rng([20240915, at])
            offset = 1.0 if "norm" in name else 0.0
            base = (offset + random.standard_normal(np.prod(shape)) * 0.05).astype(np.float32)
            random = np.random.default_rng([20240916, at, number])
            values = base if number == 0 else family.expert(random, base, 2e-3)
            tensors[name] = values.reshape(shape)
        for kind, dtype in (("f32", "float32"), ("bf16", "bfloat16")):
            folder = os.path.join(work, kind, model)
            os.makedirs(folder)
            stored = tensors if kind == "f32" else {n: family.to_bf16(t) for n, t in tensors.items()}
            write_shards(folder, stored, number + 1)
            with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
                json.dump(config | {"torch_dtype": dtype}, file, indent=2)
            for name in TOKENIZER:
                shutil.copy(os.path.join(fixtures, "llama", "base", name), folder)
