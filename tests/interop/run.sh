#!/bin/bash
# run.sh [REFLOW] [--transformers]: merges fixtures/llama and checks the output from Python.
#
# Always: safetensors opens every shard, the rules of common loaders hold, values equal the numpy reference.
# With --transformers also: AutoModelForCausalLM.from_pretrained, a forward pass and the tokenizer (installs torch: some
# 3 GB and two minutes). Uses a virtual environment below target/, made when needed.
set -euo pipefail
cd "$(dirname "$0")/../.."
reflow=target/release/reflow transformers=
for argument in "$@"; do
  if [ "$argument" = --transformers ]; then transformers=1; else reflow=$argument; fi
done
[ -x "$reflow" ] || cargo build --release --quiet
command -v python3 > /dev/null || { echo "NOT TESTED: no python3"; exit 0; }
venv=target/interop-venv
[ -x $venv/bin/python ] || python3 -m venv $venv
packages=(numpy safetensors)
[ -z "$transformers" ] || packages+=(torch transformers)
$venv/bin/pip install --quiet --disable-pip-version-check "${packages[@]}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
experts=(--expert fixtures/llama/expert1=1.2 --expert fixtures/llama/expert2=1 --expert fixtures/llama/expert3=0.9)
for dtype in keep f32; do
  "$reflow" merge --base fixtures/llama/base "${experts[@]}" --variant c --dtype $dtype --shard-size 100KB --out "$work/$dtype" -q
  $venv/bin/python tests/interop/check_loaders.py "$work/$dtype" fixtures/llama/base
done
$venv/bin/python fixtures/oracle/merge_dirs.py --base fixtures/llama/base "${experts[@]}" --method pcb --variant c --keep 0.1 --out "$work/reference.safetensors" 2> /dev/null
$venv/bin/python fixtures/oracle/merge_dirs.py compare "$work/f32" "$work/reference.safetensors" --max-ulp 2 --atol 2e-7 --allow 8 | tail -1
if [ -n "$transformers" ]; then
  $venv/bin/python tests/interop/check_transformers.py "$work/keep"
fi
