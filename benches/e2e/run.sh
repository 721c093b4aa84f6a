#!/bin/bash
# run.sh [FAMILY_DIR] [PAIRS]: whole merges against what the disk and the memory allow, measured alternately in one run.
#
# Builds the 1.1-billion-parameter family (8.8 GB; needs python3 with numpy) unless FAMILY_DIR holds it. Prints each
# measurement to stderr and a table of medians to stdout: disks and neighbours drift, ratios of neighbours in time do not.
# Needs root to drop the page cache, and for the memory cgroup (v1 or v2; that row is left out loudly without one).
set -euo pipefail
cd "$(dirname "$0")/../.."
family=${1:-target/e2e/1b} pairs=${2:-5}
[ "$(id -u)" = 0 ] || { echo "run.sh: needs root to drop the page cache" >&2; exit 1; }
cargo build --release --quiet --bins --examples
if [ ! -d "$family/expert3" ]; then
  mkdir -p "$family"
  python3 fixtures/make_family.py "$family" --preset 1b --experts 3
fi
out=$family/merged
scratch=$(mktemp -d)
trap 'rm -rf "$scratch" "$out" "$out.partial" "$family/floor.bin"' EXIT
say() { echo "$*" >&2; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.3f", b - a }'; }
experts=("$family"/expert1 "$family"/expert2 "$family"/expert3)
flags=() weighted=()
for expert in "${experts[@]}"; do flags+=(--expert "$expert") weighted+=(--expert "$expert=1"); done

pcb() { target/release/reflow merge --base "$family/base" "${flags[@]}" --out "$out" --quiet "$@" > /dev/null; }
linear() { target/release/reflow merge --method linear "${weighted[@]}" --out "$out" --quiet "$@" > /dev/null; }
in_64_mib() { benches/e2e/in_cgroup.sh 64 "$@" > /dev/null; }
clean() { rm -rf "$out" "$out.partial"; sync; }
cold() { clean; echo 3 > /proc/sys/vm/drop_caches; local a; a=$(now); "$@"; since "$a"; }
warm() { clean; cat "$family"/*/*.safetensors > /dev/null; local a; a=$(now); "$@"; since "$a"; }

# note NAME FLOOR SECONDS: keeps a measurement.
note() {
  echo "$2 $3" >> "$scratch/$1"
  say "$1: $3 s, floor $2 s, ratio $(awk -v f="$2" -v s="$3" 'BEGIN { printf "%.2f", s / f }')"
}
for pair in $(seq "$pairs"); do
  say "pair $pair of $pairs"
  read -r _ _ floor < <(benches/e2e/floor.sh 2 "$family/floor.bin" "$family"/base "${experts[@]}")
  note "PCB a, cold" "$floor" "$(cold pcb)"
  if [ -n "${REFLOW_NO_CGROUP:-}" ]; then say "NOT MEASURED: 64 MiB cgroup"; else
    note "PCB a, cold, in a 64 MiB cgroup" "$floor" "$(cold in_64_mib target/release/reflow merge --base "$family/base" \
      "${flags[@]}" --out "$out" --quiet --memory 64MiB)"
  fi
  read -r _ _ floor < <(benches/e2e/floor.sh 1 "$family/floor.bin" "${experts[@]}")
  note "linear, cold" "$floor" "$(cold linear)"
  cat "$family"/*/*.safetensors > /dev/null
  note "PCB a, warm" "$(target/release/examples/warm_floor 2 "$family"/base "${experts[@]}")" "$(warm pcb)"
  note "linear, warm" "$(target/release/examples/warm_floor 1 "${experts[@]}")" "$(warm linear)"
done

echo "$(nproc) cores,$(awk -F: '/model name/ { print $2; exit }' /proc/cpuinfo), $(uname -sr); $pairs pairs"
echo
echo "| merge | floor, s | reflow, s | ratio to the floor | lowest to highest |"
echo "|---|---|---|---|---|"
for file in "$scratch"/*; do
  awk -v name="$(basename "$file")" -f benches/e2e/table.awk "$file"
done
