"""What of the methods that draw random numbers can be compared: how often, and with what mean.

torch's random numbers are torch's own, so masks cannot be equal. Instead mergekit merges tensors of many equal rows (rows
are what della ranks within), and for each column the statistics over the rows are kept:

    kept    share of rows in which the expert's delta survived; with one expert only
    mean    mean of merged value minus base
    sd      its standard deviation over the rows

A merge by others that draws its masks from the same distribution agrees within the sampling errors, which is
sd * sqrt(1 / rows + 1 / their rows) for the mean.
"""
import os
import tempfile

import numpy as np
import torch

import cases
import family

ROWS = 40_000
COLUMNS = 40
NAME = "model.layers.0.mlp.down_proj.weight"


def documents():
    """(case, shape of one row, recipe)"""
    flat = (COLUMNS,)
    weights = cases.weights
    for method in ("dare_linear", "dare_ties"):
        recipe = lambda models, **parameters: cases.recipe(method, models, **parameters)
        yield "one", flat, recipe(weights(1, density=0.3))
        yield "one-unscaled", flat, recipe(weights(1, density=0.3), rescale=False)
        yield "three", flat, recipe(weights(0.5, 0.3, 0.4, density=0.5), **{"lambda": 1.2})
        each = {"a": {"weight": 0.6, "density": 0.8}, "b": {"weight": -0.5, "density": 0.3}, "c": {"weight": 0.4}}
        yield "each", flat, recipe(each)
        yield "normalize", flat, recipe(weights(0.5, 0.3, 0.4, density=0.5), normalize=True)
    for method in ("della", "della_linear"):
        recipe = lambda models, **parameters: cases.recipe(method, models, **parameters)
        yield "one", flat, recipe(weights(1, density=0.5))
        yield "one-unscaled", flat, recipe(weights(1, density=0.3, epsilon=0.25), rescale=False)
        yield "one-reversed", flat, recipe(weights(1, density=0.3, epsilon=-0.2), rescale=False)
        yield "one-3d", (COLUMNS // 2, 2), recipe(weights(1, density=0.5, epsilon=0.4))
        yield "three", flat, recipe(weights(0.5, 0.3, 0.4, density=0.6), **{"lambda": 1.2})
        each = {"a": {"weight": 0.6, "density": 0.7, "epsilon": 0.1},
                "b": {"weight": -0.5, "density": 0.3, "epsilon": 0.2}, "c": {"weight": 0.4}}
        yield "each", flat, recipe(each, normalize=False)


def models():
    """One row of each model: float32, deltas of different magnitude, none of them zero."""
    random = np.random.default_rng(20240914)
    base = (random.standard_normal(COLUMNS) * 0.05).astype(np.float32)
    return {"base": base} | {model: family.expert(random, base, 5e-3) for model in "abc"}


def statistics(run, write):
    """The statistics of all cases. `run` merges a recipe over a folder, `write(path, tensors)` writes a model."""
    row = models()
    found = []
    for case, shape, recipe in documents():
        torch.manual_seed(len(found))
        with tempfile.TemporaryDirectory() as folder:
            for model, values in row.items():
                write(os.path.join(folder, f"{model}.safetensors"), {NAME: np.tile(values, (ROWS, 1)).reshape(ROWS, *shape)})
            merged = run(recipe, folder)[NAME].numpy().reshape(ROWS, COLUMNS).astype(np.float64)
        delta = merged - row["base"]
        entry = {"method": recipe["merge_method"], "case": case, "recipe": recipe, "shape": list(shape), "rows": ROWS,
                 "mean": rounded(delta.mean(axis=0)), "sd": rounded(delta.std(axis=0))}
        if len(recipe["models"]) == 1:
            entry["kept"] = rounded((delta != 0).mean(axis=0))
        found.append(entry)
    return [{"tensor": NAME, "row": {model: [float(x) for x in values] for model, values in row.items()}}] + found


def rounded(values):
    return [float(f"{x:.7g}") for x in values]
