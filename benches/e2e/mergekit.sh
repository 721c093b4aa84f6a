#!/bin/bash
# mergekit.sh [--family DIR] [--pairs N] [METHOD..]: whole merges by mergekit 0.1.5 and by reflow, alternately, inputs in memory.
#
# mergekit runs in its fastest setting on a CPU (--lazy-unpickle --out-shard-size 500M). Both get the same recipe, on the
# family of 1.1 billion parameters that benches/e2e/run.sh makes. Prints each pair to stderr and a table of medians to
# stdout. Needs the environment of tests/parity/setup.sh. A pair takes minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
family=target/e2e/1b pairs=1 methods=()
while [ $# -gt 0 ]; do
  case $1 in
    --family) family=$2; shift 2 ;;
    --pairs) pairs=$2; shift 2 ;;
    *) methods+=("$1"); shift ;;
  esac
done
[ ${#methods[@]} -gt 0 ] || methods=(linear task_arithmetic ties breadcrumbs della sce dare_ties slerp)
family=$(realpath "$family")
venv=$(dirname "$(tests/parity/setup.sh)")
[ -x target/release/reflow ] || cargo build --release --quiet
work=$(mktemp -d "$family/../mergekit-XXXXXX")
trap 'rm -rf "$work"' EXIT
say() { echo "$*" >&2; }

# recipe METHOD: the recipe to standard output.
recipe() {
  local each=() all="" n
  case $1 in
    linear) each=("weight: 0.5" "weight: 0.3" "weight: 0.2") ;;
    task_arithmetic) each=("weight: 0.5" "weight: 0.3" "weight: 0.2") ;;
    ties | breadcrumbs) each=("weight: 1, density: 0.2" "weight: 1, density: 0.2" "weight: 1, density: 0.2") ;;
    della | dare_ties) each=("weight: 1, density: 0.5" "weight: 1, density: 0.5" "weight: 1, density: 0.5") ;;
    sce) each=("" "" "") all="select_topk: 0.1" ;;
    slerp) each=("") all="t: 0.3" ;;
    *) say "mergekit.sh: no recipe for $1"; exit 2 ;;
  esac
  echo "merge_method: $1"
  [ "$1" = linear ] || echo "base_model: $family/base"
  echo "models:"
  for n in "${!each[@]}"; do echo "  - {model: $family/expert$((n + 1)), parameters: {${each[n]}}}"; done
  if [ -n "$all" ]; then echo "parameters: {$all}"; fi
  echo "dtype: bfloat16"
}
# timed COMMAND..: its seconds; what it says goes to a file.
timed() {
  local a b
  a=$(date +%s.%N)
  "$@" > "$work/log" 2>&1 || return 1
  b=$(date +%s.%N)
  awk -v a="$a" -v b="$b" 'BEGIN { printf "%.2f", b - a }'
}
median() { sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

table=""
for method in "${methods[@]}"; do
  recipe "$method" > "$work/$method.yml"
  ours=() theirs=()
  for _ in $(seq "$pairs"); do
    rm -rf "$work/reflow" "$work/mergekit"
    sync
    cat "$family"/*/*.safetensors > /dev/null
    if seconds=$(timed target/release/reflow merge "$work/$method.yml" --out "$work/reflow"); then
      ours+=("$seconds")
      say "$method: reflow $seconds s"
    else
      say "$method: reflow: $(head -1 "$work/log")"
    fi
    rm -rf "$work/reflow"
    sync
    cat "$family"/*/*.safetensors > /dev/null
    seconds=$(HF_HUB_OFFLINE=1 timed "$venv/mergekit-yaml" "$work/$method.yml" "$work/mergekit" --lazy-unpickle \
      --out-shard-size 500M --no-copy-tokenizer --quiet) || { say "$method: mergekit: $(tail -3 "$work/log")"; exit 1; }
    theirs+=("$seconds")
    say "$method: mergekit $seconds s"
  done
  mergekit=$(printf '%s\n' "${theirs[@]}" | median)
  if [ ${#ours[@]} -gt 0 ]; then
    reflow=$(printf '%s\n' "${ours[@]}" | median)
    table+="| $method | $mergekit | $reflow | **$(awk -v a="$mergekit" -v b="$reflow" 'BEGIN { printf "%.1f", a / b }')** |"$'\n'
  else
    table+="| $method | $mergekit | not yet | |"$'\n'
  fi
done
echo "$(nproc) cores,$(awk -F: '/model name/ { print $2; exit }' /proc/cpuinfo), $(uname -sr); $pairs pair(s), inputs in the page cache"
echo
echo "| method | mergekit, s | reflow, s | times faster |"
echo "|---|---|---|---|"
printf '%s' "$table"
