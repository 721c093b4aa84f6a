"""check_loaders.py MERGED BASE: what safetensors, mlx, llama.cpp's converter and vLLM ask of a directory of weights."""
import json
import os
import struct
import sys

from safetensors import safe_open

merged, base = sys.argv[1:]
names = os.listdir(merged)
shards = sorted(n for n in names if n.endswith(".safetensors"))
index_path = os.path.join(merged, "model.safetensors.index.json")
assert not [n for n in names if n.endswith((".part", ".tmp", ".bin"))], names
# mlx loads every model*.safetensors, llama.cpp every model-*: nothing else may lie there.
assert all(n.startswith("model") for n in shards), shards
held, total, parameters = {}, 0, 0
for shard in shards:
    path = os.path.join(merged, shard)
    with open(path, "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
    assert n % 8 == 0 and n < 5 << 20, (shard, n)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        width = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}[entry["dtype"]]
        assert stop > start and (8 + n + start) % width == 0, (name, entry)
        held[name] = shard
        total += stop - start
        parameters += (stop - start) // width
    with safe_open(path, framework="np") as f:
        assert f.metadata() == {"format": "pt"}, f.metadata()
        assert set(f.keys()) == set(header) - {"__metadata__"}
if len(shards) > 1:
    index = json.load(open(index_path))
    assert index["weight_map"] == held
    assert list(index["weight_map"]) == sorted(held)
    assert index["metadata"] == {"total_parameters": parameters, "total_size": total}
    assert shards == [f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors" for k in range(len(shards))]
else:
    assert shards == ["model.safetensors"] and not os.path.exists(index_path)
config = json.load(open(os.path.join(merged, "config.json")))
stored = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[next(e["dtype"] for k, e in header.items() if k != "__metadata__")]
assert config.get("torch_dtype", config.get("dtype")) == stored, config
if config.get("tie_word_embeddings"):
    assert "lm_head.weight" not in held
for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]:
    assert open(os.path.join(merged, name), "rb").read() == open(os.path.join(base, name), "rb").read(), name
card = open(os.path.join(merged, "README.md")).read()
assert card.startswith("---\nbase_model:\n") and "tags:\n- merge\n- reflow\n- pcb\n" in card, card
print(f"{len(shards)} shards, {len(held)} tensors: safetensors opens them, loaders' rules hold")
