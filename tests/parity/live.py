#!/usr/bin/env python3
"""Merges recipes with mergekit and with reflow, and compares tensors and metadata. Started by tests/parity/run."""
import argparse
import glob
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from functools import partial

import numpy as np
import torch
import yaml
from safetensors import safe_open

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.abspath(os.path.join(HERE, "..", ".."))
FIXTURES = os.path.join(ROOT, "fixtures")
sys.path[:0] = [HERE, FIXTURES]
import live_family  # noqa: E402
import lora  # noqa: E402
import modules  # noqa: E402
import tokens  # noqa: E402
from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.io.tasks import LoaderCache  # noqa: E402
from mergekit.merge import run_merge  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
SHARD = 300_000
REFUSED = 2
# What the rounding of f32 does to a divergence of 1e-6, its share: 7 % were measured.
FUSION_NOISE = 0.1
CONFIG = ("architectures", "model_type", "num_hidden_layers", "vocab_size", "tie_word_embeddings", "hidden_size")


class Differs(Exception):
    """What differs, in words."""


def tolerances():
    """{method: (ulps in f32, ulps in bf16)}, from the table in docs/methods.md."""
    with open(os.path.join(ROOT, "docs", "methods.md"), encoding="utf-8") as file:
        table = file.read().split("## Agreement with mergekit")[1]
    return {m: (float(a), float(b)) for m, a, b in re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", table, re.M)}


def with_mergekit(text, out):
    LoaderCache().loaders.clear()
    options = MergeOptions(quiet=True, out_shard_size=SHARD, lazy_unpickle=True, random_seed=1, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), out, options, config_source=text)


def with_reflow(reflow, path, out):
    """None, or why it refuses the recipe."""
    run = subprocess.run([reflow, "merge", path, "--out", out], capture_output=True, text=True, check=False)
    if run.returncode == REFUSED:
        return run.stderr.strip()
    if run.returncode:
        raise Differs(f"exit code {run.returncode}: {run.stderr.strip().splitlines()[-1:]}")
    return None


def load(folder):
    """All tensors of a checkpoint; its index, shards and sizes must agree."""
    found, index = {}, os.path.join(folder, "model.safetensors.index.json")
    files = sorted(glob.glob(os.path.join(folder, "*.safetensors")))
    for path in files:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("format") != "pt":
                raise Differs(f"{os.path.basename(path)} does not say format: pt")
            for name in file.keys():
                if name in found:
                    raise Differs(f"{name} is in two shards")
                found[name] = (file.get_tensor(name), os.path.basename(path))
    if os.path.exists(index):
        with open(index, encoding="utf-8") as file:
            listed = json.load(file)
        if listed["weight_map"] != {name: path for name, (_, path) in found.items()}:
            raise Differs("the index does not list what the shards hold")
        size = sum(t.nbytes for t, _ in found.values())
        if listed["metadata"]["total_size"] != size:
            raise Differs(f"total_size is {listed['metadata']['total_size']}, the tensors have {size} bytes")
    elif len(files) != 1:
        raise Differs(f"{len(files)} shards and no index")
    return {name: tensor for name, (tensor, _) in found.items()}


def same_metadata(ours, theirs):
    def config(folder):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        # transformers 5 writes dtype for torch_dtype.
        return {key: config.get(key) for key in CONFIG} | {"dtype": config.get("dtype", config.get("torch_dtype"))}
    if config(ours) != config(theirs):
        raise Differs(f"config.json: {config(ours)} against {config(theirs)}")
    for name in live_family.TOKENIZER:
        if os.path.exists(os.path.join(theirs, name)) and not os.path.exists(os.path.join(ours, name)):
            raise Differs(f"{name} is missing")


def ulps(ours, theirs, size):
    """The largest distance of two tensors, in units of the last place at `size`."""
    bits = 8 if ours.dtype == torch.bfloat16 else 24
    place = torch.exp2(torch.floor(torch.log2(size.double().clamp(min=2.0**-126))) - (bits - 1))
    distance = (ours.double() - theirs.double()).abs() / place
    if distance.isnan().any():
        raise Differs("a NaN")
    return distance.max().item()


def inputs(recipe):
    """The largest magnitude of any weight near an element cannot be known once layers move: the tensors of all models."""
    document = yaml.safe_load(recipe)
    if "slices" in document and document["merge_method"] == "passthrough":
        return []
    text = re.findall(r"\b((?:f32|bf16)/\w+)", recipe)
    return [load(model) for model in sorted(set(text))]


def compare(method, recipe, ours, theirs):
    """A word on how well the merged checkpoints agree."""
    same_metadata(ours, theirs)
    ours, theirs, models = load(ours), load(theirs), inputs(recipe)
    if sorted(ours) != sorted(theirs):
        raise Differs(f"tensors: {sorted(set(ours) ^ set(theirs))[:4]}")
    if method == "arcee_fusion":
        return fusion(ours, theirs, *models)
    allowed, worst, changed, total = tolerances()[method], 0.0, 0, 0
    for name in sorted(ours):
        a, b = ours[name], theirs[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            raise Differs(f"{name}: {a.dtype} {tuple(a.shape)} against {b.dtype} {tuple(b.shape)}")
        if method in RANDOM:
            continue
        size = torch.stack([a.abs().float(), b.abs().float()] + [m[name].abs().float() for m in models]).amax(0)
        distance = ulps(a, b, size)
        worst, changed, total = max(worst, distance), changed + int((a != b).sum()), total + a.numel()
        limit = allowed[a.dtype == torch.bfloat16]
        if distance > limit:
            raise Differs(f"{name}: {distance:g} ulp, allowed are {limit:g}")
    if method in RANDOM:
        return alike(ours, theirs, load("f32/base"))
    return "equal" if not changed else f"{changed / total:.2%} differ, up to {worst:g} ulp"


def fusion(ours, theirs, base, model):
    """Each element is the base's or the model's. Ours must be chosen as the definition says, computed in doubles; theirs may
    be chosen otherwise where the importance is near the threshold: in f32 it has an error of some percent."""
    other, total, furthest = 0, 0, 0.0
    for name in sorted(ours):
        a, b, x, y = ours[name], theirs[name], model[name], base[name]
        p, q = (torch.softmax(t.double(), -1) + 1e-8 for t in (x, y))
        importance = (x.double() - y.double()).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
        ranks, last = importance.flatten().sort()[0], importance.numel() - 1
        first, median, third = (ranks[int(q * last)] for q in (0.25, 0.5, 0.75))
        distance = importance / (median + 1.5 * (third - first)) - 1
        definition = torch.where(distance >= 0, y + (x - y), y)
        wrong = (a != definition) & (distance.abs() > 1e-5)
        if wrong.any():
            raise Differs(f"{name}: {int(wrong.sum())} elements are not chosen as the definition says")
        if not ((a == b) | (b == y) | (b == y + (x - y))).all():
            raise Differs(f"{name}: values that are neither the base's nor the model's")
        if (a != b).any():
            furthest = max(furthest, distance[a != b].abs().max().item())
        other, total = other + int((a != b).sum()), total + a.numel()
    if furthest > FUSION_NOISE:
        raise Differs(f"an element is chosen otherwise though its importance is {furthest:.1%} off the threshold")
    return f"as defined; mergekit chooses {other / total:.2%} otherwise, up to {furthest:.1%} off the threshold"


def alike(ours, theirs, base):
    """Random masks: as many surviving deltas and as much change, within the sampling error of the whole model."""
    delta = [np.concatenate([(m[n].double() - base[n].double()).flatten().numpy() for n in sorted(base)]) for m in (ours, theirs)]
    share = [(d != 0).mean() for d in delta]
    change = [np.abs(d).sum() for d in delta]
    if abs(share[0] - share[1]) > 0.01 or abs(change[0] / change[1] - 1) > 0.02:
        raise Differs(f"changed {share[0]:.4f} against {share[1]:.4f}, by {change[0]:.5g} against {change[1]:.5g}")
    return f"alike: {share[0]:.2%} and {share[1]:.2%} changed, by {change[0]:.4g} and {change[1]:.4g}"


def others(work, reflow):
    """(name, whether reflow agrees, words) of what is no recipe of this directory."""
    for name, passed, words in lora.check(work, reflow, load):
        yield f"lora-{name}", passed, words
    for name, passed, words in modules.check(work, reflow, with_mergekit, load):
        yield f"modules-{name}", passed, words
    for name, passed, words in tokens.check(work, FIXTURES, reflow, with_mergekit, load):
        yield f"tokens-{name}", passed, words


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--reflow", default=os.path.join(ROOT, "target", "release", "reflow"))
    parser.add_argument("recipes", nargs="*")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    recipes = [os.path.abspath(r) for r in arguments.recipes] or sorted(glob.glob(os.path.join(HERE, "recipes", "*.yml")))
    reflow = os.path.abspath(arguments.reflow)
    counts = dict.fromkeys(("passed", "failed", "not yet"), 0)
    with tempfile.TemporaryDirectory() as work:
        live_family.write(work, FIXTURES)
        os.chdir(work)
        for path in recipes:
            name = os.path.splitext(os.path.basename(path))[0]
            with open(path, encoding="utf-8") as file:
                text = file.read()
            os.makedirs(f"out/{name}")
            try:
                refused = with_reflow(reflow, path, f"out/{name}/reflow")
                if refused is not None:
                    verdict, words = "not yet", refused.splitlines()[0]
                else:
                    with_mergekit(text, f"out/{name}/mergekit")
                    method = yaml.safe_load(text)["merge_method"]
                    verdict, words = "passed", compare(method, text, f"out/{name}/reflow", f"out/{name}/mergekit")
            except Differs as difference:
                verdict, words = "failed", str(difference)
            counts[verdict] += 1
            print(f"{name:28} {verdict:8} {words}", flush=True)
        for name, passed, words in [] if arguments.recipes else others(work, partial(with_reflow, reflow)):
            verdict = "passed" if passed else "failed"
            counts[verdict] += 1
            print(f"{name:28} {verdict:8} {words}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["failed"] or (arguments.strict and counts["not yet"]) else 0


if __name__ == "__main__":
    sys.exit(main())
