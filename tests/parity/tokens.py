"""Models with tokenizers of their own: rows of embeddings, tokenizer and config of reflow against those of mergekit, token by token."""
import json
import os

import numpy as np
import torch
from transformers import AutoTokenizer

import live_family

HEAD = "merge_method: task_arithmetic\nbase_model: t/base\nmodels:\n  - {model: t/x, parameters: {weight: 0.5}}\n" \
       "  - {model: t/y, parameters: {weight: 0.25}}\ndtype: float32\n"
LINEAR = "merge_method: linear\nmodels: [{model: t/x}, {model: t/y}]\nparameters: {weight: 0.5}\ndtype: float32\n"
TEMPLATE = "{% for message in messages %}{{ message.content }}|{% endfor %}"
RECIPES = {
    "base": HEAD + "tokenizer_source: base\n",
    "union": HEAD + "tokenizer: {}\n",
    "model": HEAD + "tokenizer_source: t/y\n",
    "no-base": LINEAR + "tokenizer_source: union\n",
    "words": HEAD.replace("t/y", "t/z") + "tokenizer_source: union\n",
    "padded": HEAD + "tokenizer: {source: union, pad_to_multiple_of: 64}\n",
    # With source: base, mergekit 0.1.5 ends in a KeyError if tokens are new.
    "tokens": HEAD + "tokenizer:\n  source: union\n  tokens:\n    <|x|>: {source: t/y}\n"
              "    <|b|>: {source: t/x, force: true}\n    the: {source: {kind: zero}, force: true}\n"
              "    <|new|>: {source: {kind: model_token, model: t/x, token: of}}\n"
              "    <|old|>: {source: {kind: model_token, model: t/base, token_id: 7}}\n",
    "template": HEAD + f"tokenizer_source: base\nchat_template: '{TEMPLATE}'\n",
    "template-alone": HEAD.replace("  - {model: t/y, parameters: {weight: 0.25}}\n", "").replace("t/x", "t/same")
                      + "chat_template: auto\n",
}
# The mean of all rows is added in another order.
PADDING_ULPS, ULPS = 16, 1


def added(number, content, special=True):
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": special}


def write_model(folder, fixture, number, words, extra):
    """A llama of one layer with the fixture's tokenizer but these words and added tokens, a row for each."""
    tokenizer = fixture("tokenizer.json")
    tokenizer["model"]["vocab"] = {word: k for k, word in enumerate(words)}
    tokenizer["added_tokens"] = tokenizer["added_tokens"] + [added(len(words) + k, t) for k, t in enumerate(extra)]
    rows, hidden = len(words) + len(extra), 16
    random = np.random.default_rng([20240918, number])
    shapes = {name: shape for name, shape in live_family.shapes() if "layers." not in name or "layers.0." in name}
    sizes = {live_family.HIDDEN: hidden, live_family.HIDDEN // 2: hidden // 2, live_family.MLP: 24, live_family.VOCAB: rows}
    tensors = {name: (random.standard_normal([sizes[n] for n in shape]) * 0.05).astype(np.float32) for name, shape in shapes.items()}
    config = fixture("config.json") | {"hidden_size": hidden, "intermediate_size": 24, "vocab_size": rows, "torch_dtype": "float32",
                                       "num_hidden_layers": 1, "head_dim": hidden // 4}
    os.makedirs(folder)
    live_family.write_shards(folder, tensors, 1)
    for name, content in (("config.json", config), ("tokenizer.json", tokenizer),
                          ("tokenizer_config.json", fixture("tokenizer_config.json") | {"chat_template": f"{TEMPLATE}{number % 2}"}),
                          ("special_tokens_map.json", fixture("special_tokens_map.json"))):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file)


def write(work, fixtures):
    def fixture(name):
        with open(os.path.join(fixtures, "llama", "base", name), encoding="utf-8") as file:
            return json.load(file)
    words = list(fixture("tokenizer.json")["model"]["vocab"])
    shuffled = words[:3] + list(np.random.default_rng(1).permutation(words[3:]))
    for number, (name, own, extra) in enumerate((
            ("base", words, ["<|b|>"]), ("x", shuffled, ["<|x|>", "<|b|>"]), ("y", words[:-5], ["<|y|>", "<|x|>"]),
            ("z", words[:-3] + ["zebra", "yak"], ["<|x|>"]), ("same", words, ["<|b|>"]))):
        write_model(os.path.join(work, "t", name), fixture, number, [str(w) for w in own], extra)


def check(work, fixtures, reflow, mergekit, load):
    """Yields (name, whether they agree, words) for each recipe."""
    write(work, fixtures)
    for name, text in RECIPES.items():
        recipe, ours, theirs = (os.path.join(work, f"tokens-{name}{end}") for end in (".yml", "-reflow", "-mergekit"))
        with open(recipe, "w", encoding="utf-8") as file:
            file.write(text)
        refused = reflow(recipe, ours)
        if refused:
            yield name, False, refused
            continue
        mergekit(text, theirs)
        yield (name, *agree(ours, theirs, load, "base_model" in text))


def agree(ours, theirs, load, has_base):
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (ours, theirs)]
    a, b = (tokenizer.get_vocab() for tokenizer in tokenizers)
    if set(a) != set(b):
        return False, f"tokens: {sorted(set(a) ^ set(b))[:4]}"
    templates = [tokenizer.chat_template for tokenizer in tokenizers]
    # Without a base, mergekit takes the template of the first model of a set, which is another from run to run.
    if has_base and templates[0] != templates[1]:
        return False, f"chat templates: {templates}"
    configs = []
    for path in (ours, theirs):
        with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
            configs.append(json.load(file)["vocab_size"])
    if configs[0] != configs[1]:
        return False, f"vocab_size: {configs}"
    tokens, ours, theirs = sorted(a), load(ours), load(theirs)
    worst = [0.0, 0.0]
    for name in sorted(ours):
        x, y = ours[name], theirs[name]
        if x.shape != y.shape:
            return False, f"{name}: {tuple(x.shape)} against {tuple(y.shape)}"
        parts = [(x, y, 0)]
        if "embed" in name or "lm_head" in name:
            rows = [torch.tensor([vocab[token] for token in tokens]) for vocab in (a, b)]
            parts = [(x[rows[0]], y[rows[1]], 0), (x[len(tokens):], y[len(tokens):], 1)]
        for x, y, kind in (part for part in parts if part[0].numel()):
            size = torch.maximum(x.abs(), y.abs()).double().clamp(min=0.01)
            ulps = (x.double() - y.double()).abs() / torch.exp2(torch.floor(torch.log2(size)) - 23)
            worst[kind] = max(worst[kind], ulps.max().item())
    if worst[0] > ULPS or worst[1] > PADDING_ULPS:
        return False, f"rows of tokens by {worst[0]:g} ulp, of padding by {worst[1]:g}"
    moved = sum(a[token] != b[token] for token in tokens)
    return True, f"{len(tokens)} tokens, {moved} with other numbers; up to {worst[0]:g} ulp, padding {worst[1]:g}"
