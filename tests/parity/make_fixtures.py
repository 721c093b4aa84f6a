#!/usr/bin/env python3
"""Makes fixtures/parity anew: what mergekit 0.1.5 gives, method by method and parameter by parameter.

    $(tests/parity/setup.sh) tests/parity/make_fixtures.py

inputs-f32, inputs-bf16.safetensors.zst    the models, tensors named MODEL/TENSOR
methods.json                               the cases, with their recipes
methods/METHOD.safetensors.zst             mergekit's results, tensors named CASE/TENSOR
random.json                                statistics of the methods that draw random numbers
slices.json, slices.safetensors.zst        merges by slices, tensors named CASE/TENSOR, and their models, named MODEL/TENSOR
parameters.json                            the value of each parameter for each tensor of recipes of every form
"""
import json
import logging
import os
import shutil
import sys
import tempfile

os.environ["TQDM_DISABLE"] = "1"
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
OUT = os.path.join(ROOT, "fixtures", "parity")
sys.path[:0] = [HERE, os.path.join(ROOT, "fixtures")]
import cases  # noqa: E402
import family  # noqa: E402
import parameters  # noqa: E402
import random_methods  # noqa: E402
import slices  # noqa: E402
from make_golden import compress, safetensors  # noqa: E402
from mergekit.graph import Executor  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402
from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, SimpleLoaderCache, plan_flat_merge  # noqa: E402


def run(recipe, folder):
    """The merged tensors of a recipe whose models are FOLDER/MODEL.safetensors, as mergekit-pytorch merges them."""
    path = lambda model: os.path.join(folder, f"{model}.safetensors")
    recipe = json.loads(json.dumps(recipe))
    for entry in recipe["models"]:
        entry["model"] = path(entry["model"])
    if "base_model" in recipe:
        recipe["base_model"] = path(recipe["base_model"])
    SimpleLoaderCache._instance = None
    with tempfile.TemporaryDirectory() as out:
        options = MergeOptions(quiet=True)
        tasks = plan_flat_merge(RawPyTorchMergeConfig.model_validate(recipe), out, False, False, options)
        executor = Executor(tasks, math_device="cpu", storage_device="cpu")
        for _ in executor.run(quiet=True):
            pass
        with safe_open(os.path.join(out, "model.safetensors"), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}


def array(tensor):
    """As numpy; bfloat16 as its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy()
    assert tensor.dtype == torch.float32, tensor.dtype
    return tensor.numpy()


def write_model(path, tensors):
    with open(path, "wb") as file:
        file.write(safetensors(tensors, {"format": "pt"}))


def methods():
    inputs = {"f32": family.float32(), "bf16": family.bfloat16()}
    with tempfile.TemporaryDirectory() as work:
        for kind, models in inputs.items():
            os.makedirs(os.path.join(work, kind))
            tensors = {f"{model}/{name}": x for model, members in models.items() for name, x in members.items()}
            compress(os.path.join(OUT, f"inputs-{kind}.safetensors.zst"), safetensors(tensors, {}))
            for model, members in models.items():
                write_model(os.path.join(work, kind, f"{model}.safetensors"), members)
        listed, results = [], {}
        for method, name, kind, recipe in cases.all_cases():
            merged = run(recipe, os.path.join(work, kind))
            assert set(merged) == {name for name, *_ in family.TENSORS}
            for tensor, values in merged.items():
                assert torch.isfinite(values).all(), (method, name, tensor)
                key = f"{name}/{tensor}"
                assert key not in results.setdefault(method, {}), key
                results[method][key] = array(values)
            listed.append({"method": method, "case": name, "inputs": kind, "recipe": recipe})
    for method, tensors in results.items():
        compress(os.path.join(OUT, "methods", f"{method}.safetensors.zst"), safetensors(tensors, {}))
    write_lines("methods.json", listed)
    print(f"{len(listed)} merges by {len(results)} methods")


def write_lines(name, values):
    """A JSON list, one entry a line."""
    with open(os.path.join(OUT, name), "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(value) for value in values) + "\n]\n")


def write_slices():
    inputs, listed, results = slices.merged(write_model)
    compress(os.path.join(OUT, "slices.safetensors.zst"), safetensors(inputs | results, {}))
    write_lines("slices.json", listed)


def main():
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    shutil.rmtree(os.path.join(OUT, "methods"), ignore_errors=True)
    os.makedirs(os.path.join(OUT, "methods"))
    methods()
    write_lines("random.json", random_methods.statistics(run, write_model))
    write_lines("parameters.json", parameters.goldens(write_model))
    write_slices()


if __name__ == "__main__":
    main()
