#!/bin/bash
# run.sh REFLOW [FAMILY_DIR]: merges 1.1 billion parameters and three experts inside a 64 MiB memory cgroup.
#
# Once with nothing of the inputs in the page cache, and once with all, which is nothing that the cgroup is charged for.
#
# Without FAMILY_DIR a sparse family of that size is made (holes read as zeros: nearly no disk, all the reads). With it,
# the checkpoints there (base, expert1..3) are merged. Needs root, a memory controller (v1 or v2) and, to make the
# family, python3 with numpy. Skips loudly where it cannot run.
set -euo pipefail
cd "$(dirname "$0")/../.."
reflow=$(realpath "$1") family=${2:-}
skip() { echo "NOT TESTED: $*"; exit 0; }

group=
for root in /sys/fs/cgroup/memory /sys/fs/cgroup; do
  if mkdir "$root/reflow-memory.$$" 2> /dev/null; then
    group=$root/reflow-memory.$$
    if [ -f "$group/memory.limit_in_bytes" ]; then limit=memory.limit_in_bytes peak=memory.max_usage_in_bytes; else limit=memory.max peak=memory.peak; fi
    if echo $((64 << 20)) 2> /dev/null > "$group/$limit"; then break; fi
    rmdir "$group"
    group=
  fi
done
[ -n "$group" ] || skip "no memory cgroup can be made (needs root and a memory controller)"
work=$(mktemp -d "${TMPDIR:-target}/memory.XXXXXX")
cleanup() {
  rm -rf "$work"
  for _ in 1 2 3 4 5; do rmdir "$group" 2> /dev/null && break || sleep 0.2; done
}
trap cleanup EXIT

if [ -z "$family" ]; then
  family=$work/family
  python3 -c 'import numpy' 2> /dev/null || {
    python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet numpy && PATH=$work/venv/bin:$PATH
  } || skip "no numpy to make the family with"
  python3 fixtures/make_family.py "$family" --preset 1b --experts 3 --sparse > /dev/null
fi
args=(merge --base "$family/base" --expert "$family/expert1" --expert "$family/expert2" --expert "$family/expert3"
  --variant a --scope model --memory 64MiB)
python3 - "$family"/*/*.safetensors <<'EOF'
import os, sys
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
EOF
for inputs in cold warm; do
if [ "$inputs" = warm ]; then cat "$family"/*/*.safetensors > /dev/null; fi
rm -rf "$work/out"
bash -c 'echo $$ > "$0/cgroup.procs"; exec "$@"' "$group" "$reflow" "${args[@]}" --out "$work/out" --quiet
echo "merged in a 64 MiB cgroup, inputs $inputs: peak $(($(cat "$group/$peak") >> 20)) MiB, limit hits $(cat "$group/memory.failcnt" 2> /dev/null || grep '^max ' "$group/memory.events")"
done
# The same result as with all the memory there is.
"$reflow" "${args[@]:0:${#args[@]}-2}" --out "$work/free" --quiet
diff -rq "$work/out" "$work/free"
echo "byte-identical to a merge without a limit"
