"""Writes statistics of a merge that never was: synthetic.py DIR LAYERS EXPERTS. Names are hostile, shapes those of a large model."""

import json
import math
import pathlib
import random
import sys

HIDDEN, WIDE, VOCABULARY = 8192, 28672, 128256
MODULES = {
    "input_layernorm": [HIDDEN],
    "mlp.down_proj": [HIDDEN, WIDE],
    "mlp.gate_proj": [WIDE, HIDDEN],
    "mlp.up_proj": [WIDE, HIDDEN],
    "post_attention_layernorm": [HIDDEN],
    "self_attn.k_proj": [HIDDEN // 8, HIDDEN],
    "self_attn.o_proj": [HIDDEN, HIDDEN],
    "self_attn.q_proj": [HIDDEN, HIDDEN],
    "self_attn.v_proj": [HIDDEN // 8, HIDDEN],
}
HOSTILE = ["<script>document.title='broken'</script>\"'&", "</svg></title><h1>", "a-name-without-any-end-" * 9]


def row(name, shape, layers, experts, rng):
    size = math.prod(shape)
    layer = int(name.split(".")[2]) if ".layers." in name else layers / 2
    norm = "norm" in name
    base = size * (1.0 if norm else 4e-4)
    arch = 0.4 + 1.4 * math.sin(math.pi * (layer + 1) / (layers + 1)) ** 2
    relative = [0.01 * (1 + 0.2 * i) * arch * rng.uniform(0.85, 1.15) for i in range(experts)]
    if norm and experts > 1:
        relative[1] = 0.0
    like = lambda i, j: 1.0 if i == j else 0.02 + 0.25 * math.exp(-abs(i - j)) * (-1) ** (i + j)
    gram = [[like(i, j) * relative[i] * relative[j] * base for j in range(experts)] for i in range(experts)]
    with_merge = [0.5 * sum(line) for line in gram]
    table = [line + [last] for line, last in zip(gram, with_merge)] + [with_merge + [0.5 * sum(with_merge)]]
    magnitudes = []
    for i in range(experts + 1):
        zeros = size if table[i][i] == 0 else int(size * (0.3 + 0.02 * i))
        heights = [math.exp(-(((k - 8) / 2.2) ** 2) / 2) for k in range(12)]
        counts = [int((size - zeros) * height / sum(heights)) for height in heights]
        counts[8] += size - zeros - sum(counts)
        least = math.floor(math.log2(math.sqrt(table[i][i] / size))) - 8 if zeros < size else -40
        largest = 0.0 if zeros == size else 2.0 ** (least + 11)
        magnitudes.append({"largest": largest, "zeros": zeros, "from": least, "counts": counts if zeros < size else []})
    kept = [0 if r == 0 else int(size * rng.uniform(0.06, 0.14)) for r in relative]
    return {
        "name": name,
        "shape": shape,
        "elements": size,
        "base": base,
        "products": [table[i][j] for i in range(experts + 1) for j in range(i, experts + 1)],
        "magnitudes": magnitudes,
        "shared": int(size * 0.4),
        "conflicts": int(size * (0.12 + 0.05 * math.sin(layer / 5))),
        "kept": kept,
        "scores": [count * rng.uniform(0.2, 0.4) for count in kept],
    }


def main(directory, layers, experts):
    rng = random.Random(7)
    tensors = [("model.embed_tokens.weight", [VOCABULARY, HIDDEN])]
    tensors += [(f"model.layers.{k}.{name}.weight", shape) for k in range(layers) for name, shape in MODULES.items()]
    tensors += [("model.norm.weight", [HIDDEN]), ("lm_head.weight", [VOCABULARY, HIDDEN])]
    tensors += [(name.replace(".", ""), [3]) for name in HOSTILE]
    head = {
        "format": "reflow statistics 1",
        "reflow": "0",
        "plan": "",
        "method": "pcb <b>(keep 0.1)</b>",
        "base": "base & \"co\"",
        "experts": (HOSTILE + [f"expert{k}" for k in range(experts)])[:experts],
        "scores": True,
        "copied": 1,
        "least": -40,
        "bins": 48,
    }
    path = pathlib.Path(directory)
    path.mkdir(parents=True)
    with open(path / "reflow_statistics.json", "w", encoding="utf-8", newline="\n") as file:
        file.write("{\n" + "".join(f"{json.dumps(key)}:{json.dumps(value)},\n" for key, value in head.items()) + '"tensors":[')
        rows = (json.dumps(row(name, shape, layers, experts, rng), separators=(",", ":")) for name, shape in tensors)
        file.write(",".join("\n" + text for text in rows))
        file.write("\n]\n}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
