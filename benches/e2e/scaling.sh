#!/bin/bash
# scaling.sh [WORK_DIR]: how the time of a whole merge grows with parameters, experts and threads.
#
# The families are sparse: little disk, yet every byte is read and every number computed. PCB a at model scope, warm where the family
# fits in memory. Prints a table of nanoseconds per parameter and expert, all passes together. Needs python3 with numpy, and 20 GB of
# disk for the 8b output.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:-target/e2e/scaling}
cargo build --release --quiet --bins
mkdir -p "$work"
trap 'rm -rf "$work/out" "$work/out.partial"' EXIT

family() { # PRESET EXPERTS
  [ -d "$work/$1/expert$2" ] || { rm -rf "${work:?}/$1"; python3 fixtures/make_family.py "$work/$1" --preset "$1" --experts "$2" --sparse >&2; }
}
# merge NAME PRESET EXPERTS [FLAGS]: one row. The faster of two runs: neighbours of a virtual machine only slow it down.
merge() {
  local name=$1 preset=$2 experts=$3 best; shift 3
  local flags=(); for i in $(seq "$experts"); do flags+=(--expert "$work/$preset/expert$i"); done
  for _ in 1 2; do
    rm -rf "$work/out" "$work/out.partial"; sync
    local begin; begin=$(date +%s.%N)
    target/release/reflow merge --base "$work/$preset/base" "${flags[@]}" --out "$work/out" --quiet "$@" > "$work/summary"
    local took; took=$(awk -v a="$begin" -v b="$(date +%s.%N)" 'BEGIN { print b - a }')
    best=$(awk -v a="${best:-1e9}" -v b="$took" 'BEGIN { print a < b ? a : b }')
  done
  local bytes; bytes=$(stat -c %s "$work/$preset"/base/*.safetensors | awk '{ all += $1 } END { print all }')
  awk -v n="$name" -v s="$best" -v b="$bytes" -v e="$experts" 'BEGIN {
    printf "| %s | %.1f | %d | %.2f | %.2f |\n", n, b / 2e6, e, s, s / (b / 2) / e * 1e9 }'
}

echo "$(nproc) cores,$(awk -F: '/model name/ { print $2; exit }' /proc/cpuinfo), $(uname -sr)"
echo
echo "| what grows | M parameters | experts | seconds | ns per parameter and expert |"
echo "|---|---|---|---|---|"
family small 3; merge parameters small 3
family 1b 16;   merge parameters 1b 3
family 8b 3;    merge parameters 8b 3
for experts in 1 2 4 8 16; do merge experts 1b "$experts"; done
for threads in $(seq "$(nproc)"); do merge "threads: $threads" 1b 3 --threads "$threads"; done
