#!/bin/bash
# cold.sh [--family DIR] [--pairs N] [METHOD..]: whole merges of mergekit's methods from a cold disk, against what the disk needs for them.
#
# The floor is one cold read of all models of the recipe and one durable write of the output, measured beside each merge. At tensor
# scope, as in these recipes, every method reads its inputs once where a tensor of all models fits in memory. Prints each pair to
# stderr and a table of medians to stdout. Needs root to drop the page cache, and the family of benches/e2e/run.sh.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "cold.sh: needs root to drop the page cache" >&2; exit 1; }
pairs=3
. "$(dirname "$0")/arguments.sh"
work=$(mktemp -d "$family/../cold-XXXXXX")
trap 'rm -rf "$work"' EXIT

for method in "${methods[@]}"; do
  recipe=$work/$method.yml
  benches/e2e/recipe.sh "$method" "$family" > "$recipe"
  mapfile -t models < <(grep -o "$family/[a-z0-9]*" "$recipe")
  for _ in $(seq "$pairs"); do
    read -r _ _ floor < <(benches/e2e/floor.sh 1 "$work/floor.bin" "${models[@]}")
    sync
    echo 3 > /proc/sys/vm/drop_caches
    a=$(date +%s.%N)
    target/release/reflow merge "$recipe" --out "$work/out" --quiet > "$work/summary"
    seconds=$(awk -v a="$a" -v b="$(date +%s.%N)" 'BEGIN { printf "%.3f", b - a }')
    rm -rf "$work/out"
    echo "$floor $seconds" >> "$work/pairs-$method"
    echo "$method: floor $floor s, reflow $seconds s" >&2
  done
done
echo "$(nproc) cores,$(awk -F: '/model name/ { print $2; exit }' /proc/cpuinfo), $(uname -sr); $pairs pair(s)"
echo
echo "| method | floor, s | reflow, s | ratio to the floor | lowest to highest |"
echo "|---|---|---|---|---|"
for file in "$work"/pairs-*; do
  awk -v name="${file#"$work"/pairs-}" -f benches/e2e/table.awk "$file"
done
