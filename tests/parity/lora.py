"""Models with adapters: reflow's MODEL+ADAPTER against PEFT's merge_and_unload, both in float32."""
import os

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "plain": {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION + MLP},
    "rslora": {"r": 16, "lora_alpha": 7, "use_rslora": True, "target_modules": MLP},
    "patterns": {"r": 4, "lora_alpha": 4, "target_modules": ATTENTION + MLP,
                 "rank_pattern": {"layers.1.mlp.up_proj": 12, "q_proj": 2}, "alpha_pattern": {"down_proj": 31, "q_proj": 1}},
    "layers": {"r": 3, "lora_alpha": 5, "target_modules": ATTENTION, "layers_to_transform": [0, 4]},
    "head": {"r": 8, "lora_alpha": 32, "target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    "saved": {"r": 8, "lora_alpha": 8, "target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]},
}


def model(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def random_values(tensor, generator):
    return torch.randn(tensor.shape, generator=generator) * 0.05


def write(base, folder):
    """Writes the adapters as PEFT saves them, with random values."""
    for number, (name, settings) in enumerate(ADAPTERS.items()):
        generator = torch.Generator().manual_seed(20240917 + number)
        adapted = get_peft_model(model(base), LoraConfig(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.copy_(random_values(parameter, generator))
        adapted.save_pretrained(os.path.join(folder, name), save_embedding_layers=False)


def merged(base, adapter):
    """PEFT's merge, and for each element the sum of |scale * B * A| and r, with which rounding errors grow."""
    adapted = PeftModel.from_pretrained(model(base), adapter)
    bounds = {}
    for name, module in adapted.base_model.model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        scaling = module.scaling["default"]
        if "default" in getattr(module, "lora_A", {}):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            size = b.double().abs() @ a.double().abs()
        else:
            a, b = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
            size = (b.double().abs() @ a.double().abs()).T
        bounds[name + ".weight"] = (abs(scaling) * size).detach(), module.r["default"]
    whole = adapted.merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in whole.state_dict().items()}, bounds


def check(work, reflow, load):
    """Yields (name, whether they agree, words) for each adapter. `reflow` merges a recipe; `load` reads a checkpoint."""
    base, folder = os.path.join(work, "f32", "base"), os.path.join(work, "adapters")
    write(base, folder)
    for name in ADAPTERS:
        adapter, out = os.path.join(folder, name), os.path.join(work, "out", f"lora-{name}")
        recipe = os.path.join(work, f"lora-{name}.yml")
        with open(recipe, "w", encoding="utf-8") as file:
            file.write(f"merge_method: passthrough\nmodels: [{{model: '{base}+{adapter}'}}]\ndtype: float32\n")
        refused = reflow(recipe, out)
        if refused:
            yield name, False, refused
            continue
        ours, (theirs, bounds) = load(out), merged(base, adapter)
        yield (name, *agree(load(base), ours, theirs, bounds))


def agree(base, ours, theirs, bounds):
    """Within one unit in the last place of weight, change and result, whichever is largest, for each of r + 2 operations."""
    if sorted(ours) != sorted(theirs):
        return False, f"tensors: {sorted(set(ours) ^ set(theirs))[:4]}"
    worst, share, changed, total = 0.0, 0.0, 0, 0
    for name in sorted(ours):
        a, b = ours[name].double(), theirs[name].double()
        change, rank = bounds.get(name, (torch.zeros_like(b), -2))
        size = torch.stack([b.abs(), base[name].double().abs(), change]).amax(0).clamp(min=2.0**-126)
        ulps = ((a - b).abs() / torch.exp2(torch.floor(torch.log2(size)) - 23)).max().item()
        if ulps > rank + 2:
            return False, f"{name}: {ulps:g} ulp, allowed are {rank + 2}"
        worst, share = max(worst, ulps), max(share, ulps / max(rank + 2, 1))
        changed, total = changed + int((a != b).sum()), total + a.numel()
    return True, f"{len(bounds)} tensors adapted, {changed / total:.2%} of elements differ, up to {worst:g} ulp, {share:.0%} of r + 2"
