"""check_transformers.py MERGED: from_pretrained, a forward pass, the tokenizer and its chat template."""
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

path = sys.argv[1]
model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, dtype="auto")
assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
assert model.dtype == torch.bfloat16, model.dtype
tokenizer = AutoTokenizer.from_pretrained(path)
ids = tokenizer("the of and what", return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(ids).logits
assert logits.shape == (1, ids.shape[1], 512) and torch.isfinite(logits).all()
text = tokenizer.apply_chat_template([{"role": "user", "content": "what is it"}], tokenize=False)
assert text.startswith("user: what is it"), text
print(f"transformers loads {sum(p.numel() for p in model.parameters())} parameters and computes with them")
