#!/bin/bash
# floor.sh READS OUT_FILE INPUT_DIR...: the time no merger can beat on this machine, now.
# Reads all shards of the inputs once with a cold cache, four streams at a time, then writes as many bytes as the
# first input has, durably. Prints seconds: read (one pass), write, READS * read + write. Needs root.
set -euo pipefail
reads=$1 out=$2
shift 2
size=$(cat "$1"/*.safetensors | wc -c)
sync
echo 3 > /proc/sys/vm/drop_caches
a=$(date +%s.%N)
for dir in "$@"; do printf '%s\0' "$dir"/*.safetensors; done | xargs -0 -P 4 -I{} dd if={} of=/dev/null bs=8M status=none
b=$(date +%s.%N)
blocks=$(((size + 8388607) / 8388608))
dd if=/dev/zero of="$out" bs=8M count=$blocks oflag=direct conv=fsync status=none 2> /dev/null ||
  dd if=/dev/zero of="$out" bs=8M count=$blocks conv=fsync status=none
c=$(date +%s.%N)
rm -f "$out"
awk -v a="$a" -v b="$b" -v c="$c" -v n="$reads" 'BEGIN { printf "%.3f %.3f %.3f\n", b - a, c - b, n * (b - a) + c - b }'
