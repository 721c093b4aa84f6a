"""A family of checkpoints to merge: small, sharded, the same in every run."""

import json
import os
import random
import struct
from array import array

LAYERS = 8
WIDTH = 48


def shapes():
    """Names and shapes: about 40 tensors of very different sizes."""
    yield "model.embed_tokens.weight", (400, WIDTH)
    for k in range(LAYERS):
        at = f"model.layers.{k}"
        yield f"{at}.input_layernorm.weight", (WIDTH,)
        yield f"{at}.mlp.down_proj.weight", (WIDTH, 96 + k)
        yield f"{at}.mlp.up_proj.weight", (128, WIDTH)
        yield f"{at}.self_attn.qkv_proj.weight", (3 * WIDTH, WIDTH)
        yield f"{at}.self_attn.o_proj.bias", (1 + k,)
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (400, WIDTH)


def values(count, rng):
    """bf16 patterns of numbers around 1/128."""
    bits = array("H", rng.randbytes(2 * count))
    return array("H", ((b & 0x80FF) | 0x3C00 for b in bits))


def tuned(base, rng):
    """The same with a third of the mantissas changed."""
    noise = array("H", rng.randbytes(2 * len(base)))
    return array("H", (b ^ (n & 0x1F) if n & 0x300 == 0 else b for b, n in zip(base, noise)))


def shard(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, data in tensors:
        end = at + 2 * len(data)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors:
            out.write(data.tobytes())


def checkpoint(root, tensors, shards):
    os.makedirs(root)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
              "tie_word_embeddings": False, "vocab_size": 400, "hidden_size": WIDTH}
    with open(f"{root}/config.json", "w") as out:
        json.dump(config, out)
    with open(f"{root}/tokenizer.json", "w") as out:
        json.dump({"model": {"type": "BPE"}}, out)
    names = {}
    for k in range(shards):
        file = f"model-{k + 1:05}-of-{shards:05}.safetensors"
        part = tensors[k::shards]
        shard(f"{root}/{file}", part)
        names.update({name: file for name, _, _ in part})
    with open(f"{root}/model.safetensors.index.json", "w") as out:
        json.dump({"metadata": {"total_size": sum(2 * len(d) for _, _, d in tensors)}, "weight_map": names}, out)


def make(root, shards=(3, 3, 3), seed=1):
    """A base and two experts in `root`."""
    rng = random.Random(seed)
    base = [(name, shape, values(product(shape), rng)) for name, shape in shapes()]
    checkpoint(f"{root}/base", base, shards[0])
    for k in (1, 2):
        expert = [(name, shape, tuned(data, rng)) for name, shape, data in base]
        checkpoint(f"{root}/expert{k}", expert, shards[k])


def product(shape):
    size = 1
    for n in shape:
        size *= n
    return size
