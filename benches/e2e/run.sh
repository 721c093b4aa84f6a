#!/bin/bash
# run.sh [FAMILY_DIR] [PAIRS]: a whole merge against the disk's floor, measured alternately in the same run.
#
# Builds the 1.1-billion-parameter family (8.8 GB; needs python3 with numpy) unless FAMILY_DIR holds it, and prints
# one line per pair and the medians of the ratios: disks and neighbours drift, ratios of neighbours in time do not.
# Needs root to drop the page cache.
set -euo pipefail
cd "$(dirname "$0")/../.."
family=${1:-target/e2e/1b} pairs=${2:-5}
[ "$(id -u)" = 0 ] || { echo "run.sh: needs root to drop the page cache" >&2; exit 1; }
cargo build --release --quiet
if [ ! -d "$family/expert3" ]; then
  mkdir -p "$family"
  python3 fixtures/make_family.py "$family" --preset 1b --experts 3
fi
out=$family/merged
args=(merge --base "$family/base" --expert "$family/expert1" --expert "$family/expert2" --expert "$family/expert3"
  --out "$out" --quiet)
now() { date +%s.%N; }
timed() { # timed cold|warm [ARG...]: seconds of one merge
  local kind=$1 a b
  shift
  rm -rf "$out" "$out.partial"
  sync
  if [ "$kind" = cold ]; then echo 3 > /proc/sys/vm/drop_caches; else cat "$family"/*/*.safetensors > /dev/null; fi
  a=$(now)
  target/release/reflow "${args[@]}" "$@" > /dev/null
  b=$(now)
  awk -v a="$a" -v b="$b" 'BEGIN { printf "%.3f", b - a }'
}
median() { sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
reads=$(target/release/reflow plan "${args[@]:1:8}" --json 2> /dev/null |
  python3 -c 'import json,sys; p=json.load(sys.stdin)["plan"]; print(sum(1 for x in p["passes"] if x["name"] != "copy"))')
echo "machine: $(nproc) cores, $(awk -F: '/model name/ { print $2; exit }' /proc/cpuinfo), $(uname -sr)"
echo "family: $family, $reads reads of all inputs and one write of the output"
ratios=$(mktemp) tight=$(mktemp) warm=$(mktemp)
for pair in $(seq "$pairs"); do
  read -r r w floor < <(benches/e2e/floor.sh "$reads" "$family/floor.bin" "$family"/base "$family"/expert?)
  cold=$(timed cold)
  small=$(timed cold --memory 64MiB)
  hot=$(timed warm)
  echo "pair $pair: floor $floor s (read $r, write $w), cold $cold s, cold with --memory 64MiB $small s, warm $hot s"
  awk -v x="$cold" -v f="$floor" 'BEGIN { print x / f }' >> "$ratios"
  awk -v x="$small" -v f="$floor" 'BEGIN { print x / f }' >> "$tight"
  echo "$hot" >> "$warm"
done
rm -rf "$out"
echo "median: cold $(median < "$ratios") x floor, cold with 64 MiB $(median < "$tight") x floor, warm $(median < "$warm") s"
