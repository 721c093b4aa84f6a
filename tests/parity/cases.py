"""The merges of the method fixtures: recipes in mergekit's schema over the models base, a, b and c.

A case is (name, inputs, recipe). `inputs` names the family: f32 or bf16. Every recipe is run by mergekit as it stands.
"""

TASK_ARITHMETIC = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs",
                   "breadcrumbs_ties")
TRIMMING = ("ties", "breadcrumbs", "breadcrumbs_ties")


def recipe(method, models, base="base", dtype="float32", **parameters):
    """models: {name: {parameter: value}}"""
    document = {"merge_method": method}
    if base:
        document["base_model"] = base
    document["models"] = [{"model": name, "parameters": own} if own else {"model": name} for name, own in models.items()]
    if parameters:
        document["parameters"] = parameters
    if dtype:
        document["dtype"] = dtype
    return document


def weights(*values, **own):
    """Models a, b, c with these weights and the same other parameters."""
    return {name: {"weight": value, **own} for name, value in zip("abc", values)}


def linear():
    yield "one", recipe("linear", weights(0.7), None)
    yield "two", recipe("linear", weights(0.6, 0.4), None)
    yield "three", recipe("linear", weights(1, 0.5, 0.3), None)
    yield "sum", recipe("linear", weights(0.5, 0.3, -0.2), None, normalize=False)
    yield "negative", recipe("linear", weights(1.2, -0.4, 0.1), None)
    yield "zero-weight", recipe("linear", weights(0.3, 0, 0.7), None)
    yield "base-is-an-input", recipe("linear", {"base": {"weight": 0.5}, **weights(0.2, 0.3)})
    yield "common-weight", recipe("linear", {"a": {}, "b": {"weight": 0.25}}, None, weight=1.5)


def passthrough():
    yield "plain", recipe("passthrough", {"a": {}}, None)
    yield "scaled", recipe("passthrough", {"a": {"scale": 0.7}}, None)
    yield "scaled-tensors", recipe("passthrough", {"a": {"scale": [{"filter": "down_proj", "value": 0},
                                                                   {"filter": "norm", "value": -2}, {"value": 1}]}}, None)


def family_of_task_arithmetic(method):
    """What all eight share: weights, normalize and lambda, nothing dropped."""
    yield "one", recipe(method, weights(0.6))
    yield "two", recipe(method, weights(0.6, 0.9))
    yield "three", recipe(method, weights(0.3, 0.5, 0.4))
    yield "lambda", recipe(method, weights(0.3, 0.5, 0.4), **{"lambda": 1.3})
    yield "normalize", recipe(method, weights(0.3, 0.5, 0.4), normalize=True)
    yield "sum", recipe(method, weights(0.3, 0.5, 0.4), normalize=False)
    yield "negative", recipe(method, weights(1, -0.6, 0.4), **{"lambda": 0.8})
    yield "zero-weights", recipe(method, weights(0.5, -0.5), normalize=True)
    yield "base-listed", recipe(method, {"base": {}, **weights(0.3, 0.5)}, int8_mask=True)
    if method in ("task_arithmetic", "ties"):
        yield "no-experts", recipe(method, {"base": {}})


def trimming(method):
    gamma = {"gamma": 0.05} if method != "ties" else {}
    yield "density", recipe(method, weights(0.3, 0.5, 0.4, density=0.2))
    yield "density-half", recipe(method, weights(1, 0.7, density=0.5))
    yield "density-each", recipe(method, {"a": {"weight": 0.5, "density": 0.1, **gamma},
                                          "b": {"weight": 0.5, "density": 0.9, **gamma},
                                          "c": {"weight": 0.5, "density": 1, **gamma}}, normalize=True)
    yield "density-tiny", recipe(method, weights(1, 0.5, density=1e-4))
    yield "density-zero", recipe(method, {"a": {"weight": 1, "density": 0}, "b": {"weight": 0.5, "density": 0.5}})
    yield "density-negative", recipe(method, weights(1, -0.6, 0.4, density=0.3, **gamma), **{"lambda": 1.2})
    yield "rescale", recipe(method, weights(0.3, 0.5, 0.4, density=0.2, **gamma), rescale=True)
    yield "rescale-normalize", recipe(method, weights(0.3, 0.5, density=0.4), rescale=True, normalize=True)
    if gamma:
        yield "gamma", recipe(method, weights(0.3, 0.5, 0.4, density=0.3, gamma=0.2))
        yield "gamma-zero", recipe(method, weights(0.3, 0.5, density=0.3, gamma=0))
        yield "gamma-overfull", recipe(method, weights(0.3, 0.5, density=0.9, gamma=0.3))


def slerp():
    for t in (0, 0.3, 0.5, 1):
        yield f"t-{t}", recipe("slerp", {"base": {}, "a": {}}, t=t)
    yield "base-last", recipe("slerp", {"a": {}, "base": {}}, t=0.3)
    yield "base-is-an-expert", recipe("slerp", {"b": {}, "a": {}}, "a", t=0.3)
    yield "filters", recipe("slerp", {"base": {}, "b": {}}, t=[{"filter": "mlp", "value": 0.8}, {"value": 0.2}])


def nuslerp():
    ways = {"flat": {}, "columns": {"nuslerp_flatten": False},
            "rows": {"nuslerp_flatten": False, "nuslerp_row_wise": True}}
    for way, parameters in ways.items():
        yield way, recipe("nuslerp", weights(0.7, 0.3), None, **parameters)
        yield f"{way}-base", recipe("nuslerp", weights(0.7, 0.3), **parameters)
    yield "unnormalised", recipe("nuslerp", weights(3, 5), None)
    yield "one-sided", recipe("nuslerp", weights(0, 1))
    yield "zero-weights", recipe("nuslerp", weights(0.5, -0.5), None)
    yield "negative", recipe("nuslerp", weights(1.5, -0.5), None)
    yield "base-listed", recipe("nuslerp", {"base": {}, **weights(0.4, 0.6)})


def multislerp():
    yield "one", recipe("multislerp", weights(0.5), None)
    yield "one-base", recipe("multislerp", weights(0.5))
    yield "two", recipe("multislerp", weights(0.6, 0.4), None)
    yield "three", recipe("multislerp", weights(0.5, 0.3, 0.4), None)
    yield "two-base", recipe("multislerp", weights(0.6, 0.4))
    yield "three-base", recipe("multislerp", weights(0.5, 0.3, 0.4))
    yield "sum", recipe("multislerp", weights(0.5, 0.3, 0.4), None, normalize_weights=False)
    yield "sum-base", recipe("multislerp", weights(0.5, 0.3, 0.4), normalize_weights=False)
    yield "eps", recipe("multislerp", weights(0.5, 0.3, 0.4), eps=1e-3)


def karcher():
    yield "one", recipe("karcher", {"a": {}}, None)
    yield "two", recipe("karcher", {"a": {}, "b": {}}, None)
    yield "three", recipe("karcher", {"a": {}, "b": {}, "c": {}}, None)
    yield "base-is-an-input", recipe("karcher", {"a": {}, "b": {}})
    yield "one-step", recipe("karcher", {"a": {}, "b": {}, "c": {}}, None, max_iter=1)
    yield "no-step", recipe("karcher", {"a": {}, "b": {}, "c": {}}, None, max_iter=0)
    yield "coarse", recipe("karcher", {"a": {}, "b": {}, "c": {}}, None, tol=0.05)


def model_stock():
    for way in (False, True):
        end = "-rows" if way else ""
        yield "two" + end, recipe("model_stock", {"a": {}, "b": {}}, filter_wise=way)
        yield "three" + end, recipe("model_stock", {"a": {}, "b": {}, "c": {}}, filter_wise=way)


def sce():
    yield "two", recipe("sce", {"a": {}, "b": {}})
    yield "three", recipe("sce", {"a": {}, "b": {}, "c": {}})
    yield "one", recipe("sce", {"a": {}}, select_topk=0.3)
    for topk in (0, 0.1, 0.5, 0.9):
        yield f"topk-{topk}", recipe("sce", {"a": {}, "b": {}, "c": {}}, select_topk=topk)
    yield "topk-two", recipe("sce", {"a": {}, "b": {}}, select_topk=0.25, int8_mask=True)


def nearswap():
    for t in (1e-5, 5e-4, 0.01):
        yield f"t-{t:g}", recipe("nearswap", {"a": {}}, t=t)
    yield "t-0", recipe("nearswap", {"base": {}, "a": {}}, t=0)
    yield "t-negative", recipe("nearswap", {"b": {}}, t=-0.1)


def arcee_fusion():
    for model in "abc":
        yield model, recipe("arcee_fusion", {model: {}})


def ram(method):
    yield "one", recipe(method, {"a": {}})
    yield "two", recipe(method, {"a": {}, "b": {}})
    yield "three", recipe(method, {"a": {}, "b": {}, "c": {}})
    yield "epsilon", recipe(method, {"a": {}, "b": {}, "c": {}}, epsilon=2e-3)
    if method == "ramplus_tl":
        yield "strong", recipe(method, {"a": {}, "b": {}, "c": {}}, epsilon=1e-3, r=0.8, alpha=1.5)


def bf16():
    """Merges in bfloat16 of bfloat16 inputs, by methods that select nothing, or nothing that ties."""
    three = {"a": {}, "b": {}, "c": {}}
    for dtype in ("bfloat16", None):
        end = "" if dtype else "-stored-type"
        yield "linear", "three" + end, recipe("linear", weights(1, 0.5, 0.3), None, dtype)
        yield "task_arithmetic", "three" + end, recipe("task_arithmetic", weights(0.3, 0.5, 0.4), dtype=dtype)
    yield "linear", "sum", recipe("linear", weights(0.5, 0.3, -0.2), None, "bfloat16", normalize=False)
    yield "passthrough", "scaled", recipe("passthrough", {"a": {"scale": 0.7}}, None, "bfloat16")
    yield "task_arithmetic", "lambda", recipe("task_arithmetic", weights(0.3, 0.5, 0.4), dtype="bfloat16", **{"lambda": 1.3})
    yield "ties", "three", recipe("ties", weights(0.3, 0.5, 0.4), dtype="bfloat16")
    yield "slerp", "t-0.3", recipe("slerp", {"base": {}, "a": {}}, dtype="bfloat16", t=0.3)
    yield "nuslerp", "flat", recipe("nuslerp", weights(0.7, 0.3), None, "bfloat16")
    yield "multislerp", "three", recipe("multislerp", weights(0.5, 0.3, 0.4), None, "bfloat16")
    yield "karcher", "three", recipe("karcher", three, None, "bfloat16")
    yield "model_stock", "three", recipe("model_stock", three, dtype="bfloat16")
    yield "sce", "three", recipe("sce", three, dtype="bfloat16")
    yield "nearswap", "t-0.01", recipe("nearswap", {"a": {}}, dtype="bfloat16", t=0.01)
    yield "ram", "three", recipe("ram", three, dtype="bfloat16")
    # Stored bf16, merged in f32: no rounding but the last.
    yield "linear", "in-f32", recipe("linear", weights(1, 0.5, 0.3), None) | {"out_dtype": "bfloat16"}
    yield "task_arithmetic", "in-f32", recipe("task_arithmetic", weights(0.3, 0.5, 0.4)) | {"out_dtype": "bfloat16"}
    yield "slerp", "in-f32", recipe("slerp", {"base": {}, "a": {}}, t=0.3) | {"out_dtype": "bfloat16"}
    yield "model_stock", "in-f32", recipe("model_stock", three)
    yield "karcher", "in-f32", recipe("karcher", three, None)


def all_cases():
    """(method, case, inputs, recipe)"""
    def of(method, *lists):
        return ((method, name, "f32", document) for cases in lists for name, document in cases)

    yield from of("linear", linear())
    yield from of("passthrough", passthrough())
    for method in TASK_ARITHMETIC:
        yield from of(method, family_of_task_arithmetic(method), trimming(method) if method in TRIMMING else ())
    for method, cases in {"slerp": slerp, "nuslerp": nuslerp, "multislerp": multislerp, "karcher": karcher,
                          "model_stock": model_stock, "sce": sce, "nearswap": nearswap,
                          "arcee_fusion": arcee_fusion}.items():
        yield from of(method, cases())
    for method in ("ram", "ramplus_tl"):
        yield from of(method, ram(method))
    for method, name, document in bf16():
        yield method, f"bf16-{name}", "bf16", document
