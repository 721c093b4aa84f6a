#!/bin/bash
# mergekit.sh [--family DIR] [--pairs N] [METHOD..]: whole merges by mergekit 0.1.5 and by reflow, alternately, inputs in memory.
#
# mergekit runs in its fastest setting on a CPU (--lazy-unpickle --out-shard-size 500M). Both get the same recipe, on the
# family of 1.1 billion parameters that benches/e2e/run.sh makes; `ties` is measured in a 64 MiB memory cgroup, too (root). Prints
# each pair to stderr and a table of medians to stdout. Needs the environment of tests/parity/setup.sh. A pair takes minutes.
set -euo pipefail
pairs=1
. "$(dirname "$0")/arguments.sh"
venv=$(dirname "$(tests/parity/setup.sh)")
work=$(mktemp -d "$family/../mergekit-XXXXXX")
trap 'rm -rf "$work"' EXIT
say() { echo "$*" >&2; }

# timed COMMAND..: its seconds, inputs in memory and nothing left to write; what it says goes to a file.
timed() {
  rm -rf "$work/reflow" "$work/mergekit"
  sync
  cat "$family"/*/*.safetensors > /dev/null
  local a b
  a=$(date +%s.%N)
  "$@" > "$work/log" 2>&1 || { say "$*: $(tail -3 "$work/log")"; return 1; }
  b=$(date +%s.%N)
  awk -v a="$a" -v b="$b" 'BEGIN { printf "%.2f", b - a }'
}
# note NAME MERGEKIT REFLOW: keeps a pair.
note() {
  echo "$2 $3" >> "$work/pairs-$1"
  say "$1: mergekit $2 s, reflow $3 s"
}

for method in "${methods[@]}"; do
  recipe=$work/$method.yml
  benches/e2e/recipe.sh "$method" "$family" > "$recipe"
  for _ in $(seq "$pairs"); do
    ours=$(timed target/release/reflow merge "$recipe" --out "$work/reflow")
    theirs=$(HF_HUB_OFFLINE=1 timed "$venv/mergekit-yaml" "$recipe" "$work/mergekit" --lazy-unpickle --out-shard-size 500M \
      --no-copy-tokenizer --quiet)
    note "$method" "$theirs" "$ours"
    [ "$method" = ties ] || continue
    if [ -n "${REFLOW_NO_CGROUP:-}" ]; then say "NOT MEASURED: 64 MiB cgroup"; continue; fi
    note "ties, reflow in a 64 MiB cgroup" "$theirs" \
      "$(timed benches/e2e/in_cgroup.sh 64 target/release/reflow merge "$recipe" --out "$work/reflow" --memory 64MiB)"
  done
done
echo "$(nproc) cores,$(awk -F: '/model name/ { print $2; exit }' /proc/cpuinfo), $(uname -sr); $pairs pair(s), inputs in the page cache"
echo
echo "| method | mergekit, s | reflow, s | times faster | lowest to highest |"
echo "|---|---|---|---|---|"
for file in "$work"/pairs-*; do
  awk -v name="${file#"$work"/pairs-}" -v invert=1 -f benches/e2e/table.awk "$file"
done
