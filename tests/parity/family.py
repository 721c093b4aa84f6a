"""The input tensors of the parity fixtures: a base and three experts, small, seeded, without ties.

torch's sorts are not stable, so which of two equal magnitudes mergekit keeps is arbitrary. Deltas that tie within a tensor
(and are not zero) are therefore drawn again, and the fixtures compare what is defined. The exception is stated below.
"""
import numpy as np

MODELS = ("base", "a", "b", "c")

# name, shape, size of the base's values, size of the deltas, offset of the base's values
TENSORS = (
    # Deltas of a fifth of the weights: spherical branches, sce's variance weights.
    ("model.layers.0.mlp.down_proj.weight", (6, 40), 0.05, 1e-2, 0.0),
    # A usual fine-tune: colinear branches, sce's uniform weights, deltas below ram's epsilon. 527 elements.
    ("model.layers.1.mlp.down_proj.weight", (17, 31), 0.05, 2e-4, 0.0),
    # Fused experts.
    ("model.layers.1.mlp.experts.down_proj", (3, 6, 10), 0.05, 5e-3, 0.0),
    # One-dimensional, around one.
    ("model.layers.0.input_layernorm.weight", (40,), 0.1, 3e-3, 1.0),
    # One-dimensional, with an expert that did not change it.
    ("model.layers.0.self_attn.q_proj.bias", (7,), 0.02, 1e-3, 0.0),
)
UNCHANGED = ("a", "model.layers.0.self_attn.q_proj.bias")


def to_bf16(values):
    """float32 to the nearest bfloat16, ties to even, as its 16 bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def heavy(random, size, scale):
    """Deltas with the heavy tails of real fine-tunes."""
    normal = random.standard_normal(size)
    return normal * (0.3 + 0.7 * np.abs(normal)) * scale


def expert(random, base, scale):
    """base plus deltas whose magnitudes all differ, as float32."""
    def tied(values):
        magnitude = np.abs(values - base)
        _, first, count = np.unique(magnitude, return_index=True, return_counts=True)
        again = np.ones(base.size, bool)
        again[first] = False
        return again | (magnitude == 0)

    values = (base + heavy(random, base.size, scale)).astype(np.float32)
    while (again := tied(values)).any():
        values[again] = (base[again] + heavy(random, again.sum(), scale)).astype(np.float32)
    return values


def float32():
    """{model: {tensor: float32 array}}"""
    family = {model: {} for model in MODELS}
    for number, (name, shape, size, delta, offset) in enumerate(TENSORS):
        random = np.random.default_rng([20240913, number])
        base = (offset + random.standard_normal(np.prod(shape)) * size).astype(np.float32)
        for model in MODELS:
            values = base
            if model != "base" and (model, name) != UNCHANGED:
                values = expert(random, base, delta)
            family[model][name] = values.reshape(shape)
    return family


def bfloat16():
    """The same family rounded to bfloat16, as bits. Its deltas tie, so it serves methods that select nothing."""
    return {model: {name: to_bf16(x) for name, x in tensors.items()} for model, tensors in float32().items()}
