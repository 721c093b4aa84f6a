"""Recipes in which every form of a parameter stands at every level. Models base, a and b, of 4 layers unless it says so."""

TIES = "merge_method: ties\nbase_model: base\n"
TWO = "models:\n  - model: a\n    parameters: {weight: 0.5}\n  - model: b\n    parameters: {weight: 0.3}\n"

# name: (layers, text)
RECIPES = {
    # Levels of the `models` form.
    "defaults": (4, TIES + TWO),
    "global-only": (4, TIES + "models: [{model: a}, {model: b}]\nparameters: {weight: 0.7, density: 0.4, normalize: false}\n"),
    "model-over-global": (4, TIES + TWO + "parameters: {weight: 0.9, density: 0.2, lambda: 1.5}\n"),
    "shared-under-a-model": (4, TIES + """\
models:
  - model: a
    parameters: {weight: 0.5, lambda: 2, normalize: false}
  - model: b
    parameters: {weight: 0.3}
parameters: {lambda: 0.8}
"""),
    "base-listed-with-parameters": (4, TIES + "models:\n  - model: base\n    parameters: {weight: 3, density: 0.1}\n" + TWO[8:]),
    "linear-base-is-an-input": (4, """\
merge_method: linear
base_model: base
models: [{model: a, parameters: {weight: 1}}, {model: b}]
parameters: {weight: 0.25}
"""),
    "missing-weight": (4, TIES + "models: [{model: a, parameters: {weight: 1}}, {model: b}]\n"),
    "linear-base-lacks-weight": (4, "merge_method: linear\nbase_model: base\n" + TWO),
    # Gradients.
    "gradient": (4, TIES + """\
models:
  - model: a
    parameters: {weight: [0, 1], density: [1, 0.7, 0.1]}
  - model: b
    parameters: {weight: [0.5, 0.1, 0.9, 0.2, 0.3], density: [0.6]}
parameters: {lambda: [1, 2]}
"""),
    "gradient-of-12-layers": (12, "merge_method: slerp\nbase_model: base\nmodels: [{model: base}, {model: a}]\n"
                                  "parameters: {t: [0, 0.5, 0.3, 0.7, 1]}\n"),
    "gradient-of-booleans": (4, TIES + TWO + "parameters: {normalize: [true, false, true], rescale: [false, true]}\n"),
    "gradient-of-integers": (4, "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: [2, 8]}\n"),
    "gradient-of-integers-between": (4, "merge_method: karcher\nmodels: [{model: a}, {model: b}]\n"
                                        "parameters: {max_iter: [2, 3]}\n"),
    "gradient-empty": (4, TIES + "models:\n  - model: a\n    parameters: {weight: [], density: []}\n"
                                 "  - model: b\n    parameters: {weight: 1}\nparameters: {weight: 0.3}\n"),
    "gradient-of-words": (4, TIES + "models:\n  - model: a\n    parameters: {weight: [1e-1, 5e-1], density: ['0.5', 1]}\n"
                                    "  - model: b\n    parameters: {weight: 1}\n"),
    # Filters.
    "filters": (4, TIES + """\
models:
  - model: a
    parameters:
      weight:
        - {filter: self_attn, value: 0.9}
        - {filter: mlp, value: 0.4}
        - {value: 0.1}
  - model: b
    parameters:
      weight: [{filter: mlp, value: 0.2}, {value: 0.25}]
      density: {filter: norm, value: 0.5}
parameters:
  weight: {filter: embed_tokens, value: 0.6}
  density: [{filter: lm_head, value: 0.7}, {filter: up_proj, value: 0.8}]
  normalize: {filter: down_proj, value: false}
  lambda: [{filter: layers.1., value: 1.1}, {filter: "*", value: 1.2}, {filter: mlp, value: 9}]
"""),
    "filters-fall-through": (4, TIES + """\
models:
  - model: a
    parameters: {weight: {filter: self_attn, value: 0.9}, density: {filter: mlp, value: 0.4}}
  - model: b
    parameters: {weight: [{filter: norm, value: 0.2}, {filter: head, value: 0.3}]}
parameters: {weight: 0.6, density: {filter: embed, value: 0.7}}
"""),
    "filter-order": (4, TIES + "models:\n  - model: a\n    parameters: {weight: [{value: 0.1}, {filter: mlp, value: 9}]}\n"
                               "  - model: b\n    parameters: {weight: [{filter: up, value: 1}, {filter: mlp, value: 2}, "
                               "{filter: layers, value: 3}, {filter: '*', value: 4}]}\n"),
    "filter-is-a-substring": (12, "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: a\n    parameters:\n"
                                  "      weight: [{filter: layers.1, value: 1}, {filter: ayers.2., value: 2}, {filter: '', value: 3}]\n"
                                  "parameters: {lambda: [{filter: layers.1., value: 5}, {filter: '0', value: 6}]}\n"),
    "filter-with-gradient": (4, TIES + """\
models:
  - model: a
    parameters:
      weight:
        - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
        - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
        - {value: [0.2, 0.4]}
  - model: b
    parameters: {weight: {filter: layers, value: [0.3, 0.6]}, density: {filter: norm, value: [0.1, 0.9]}}
parameters: {weight: {value: [0.8, 0.9]}, normalize: [{filter: mlp, value: [true, false]}]}
"""),
    "filter-of-an-empty-gradient": (4, TIES + "models:\n  - model: a\n    parameters:\n      weight: [{filter: mlp, value: []}, "
                                              "{value: 0.5}]\n  - model: b\n    parameters: {weight: 1}\nparameters: {weight: 0.3}\n"),
    # How scalars are written.
    "scalars-by-type": (4, """\
merge_method: della
base_model: base
models:
  - model: a
    parameters: {weight: 1e-1, density: '0.75', epsilon: 5E-2}
  - model: b
    parameters: {weight: true, density: 1}
parameters: {normalize: 0, rescale: off, lambda: 2, int8_mask: 'yes'}
"""),
    "scalar-of-the-wrong-type": (4, TIES + "models:\n  - model: a\n    parameters: {weight: heavy}\n"),
    "boolean-of-the-wrong-type": (4, TIES + TWO + "parameters: {normalize: 2}\n"),
    # Slices.
    "slices-gradient": (4, """\
merge_method: slerp
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, 4]}
      - {model: b, layer_range: [0, 4]}
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - {value: 0.5}
"""),
    "slices-levels": (4, """\
merge_method: ties
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: a, layer_range: [0, 2], parameters: {weight: 0.1, density: {filter: mlp, value: 0.2}}}
      - {model: b, layer_range: [0, 2]}
    parameters: {weight: 0.3, density: {filter: self_attn, value: 0.4}, lambda: 1.5}
  - sources:
      - {model: base, layer_range: [2, 4]}
      - {model: a, layer_range: [2, 4], parameters: {weight: [0.6, 0.7]}}
      - {model: b, layer_range: [2, 4], parameters: {weight: 0.8}}
    parameters: {normalize: false}
parameters: {weight: 0.9, density: 0.95, lambda: [1, 3]}
"""),
    "slices-move-layers": (4, """\
merge_method: passthrough
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {scale: {filter: layers.1., value: 2}}}
  - sources:
      - {model: b, layer_range: [1, 4], parameters: {scale: [{filter: layers.1., value: 3}, {filter: layers.3., value: [4, 5]}]}}
  - sources:
      - {model: a, layer_range: [3, 4], parameters: {scale: {filter: mlp, value: [6, 7]}}}
"""),
    "slices-move-layers-of-two": (4, """\
merge_method: task_arithmetic
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 3]}
      - {model: a, layer_range: [1, 4], parameters: {weight: [{filter: layers.2., value: 0.2}, {value: [0.5, 1]}]}}
  - sources:
      - {model: base, layer_range: [2, 4]}
      - {model: b, layer_range: [0, 2], parameters: {weight: {filter: layers.1., value: 0.4}}}
    parameters: {weight: 0.6, lambda: {filter: layers.4., value: 1.4}}
parameters: {lambda: {filter: layers.2., value: 1.2}}
"""),
    "slices-own-base": (4, """\
merge_method: slerp
base_model: base
slices:
  - sources: [{model: base, layer_range: [0, 2]}, {model: a, layer_range: [0, 2]}]
    parameters: {t: 0.2}
  - base_model: b
    sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]
    parameters: {t: [0.4, 0.6]}
parameters: {t: 0.9}
"""),
    "slices-own-base-weights": (4, """\
merge_method: task_arithmetic
base_model: base
slices:
  - sources: [{model: base, layer_range: [0, 1]}, {model: a, layer_range: [0, 1], parameters: {weight: [1, 2]}}]
  - base_model: b
    sources: [{model: a, layer_range: [1, 4], parameters: {weight: 0.3}}, {model: b, layer_range: [1, 4]}]
"""),
    # Modules.
    "modules": (4, """\
merge_method: ties
base_model: base
modules:
  default:
    slices:
      - sources:
          - {model: base, layer_range: [0, 4]}
          - {model: a, layer_range: [0, 4], parameters: {weight: {filter: mlp, value: 0.1}}}
          - {model: b, layer_range: [0, 4]}
        parameters: {weight: {filter: self_attn, value: [0.2, 0.3]}}
    parameters: {weight: {filter: norm, value: 0.4}, density: 0.5, lambda: 1.1}
parameters: {weight: 0.6, density: 0.7, normalize: false, lambda: 1.2}
"""),
    "modules-models": (4, TIES + "modules:\n  default:\n    models: [{model: a, parameters: {weight: 1}}, {model: b}]\n"
                                 "    parameters: {weight: [0.2, 0.8]}\nparameters: {weight: 0.6, lambda: 0.5}\n"),
}
