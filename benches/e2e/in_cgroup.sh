#!/bin/bash
# in_cgroup.sh MIB COMMAND [ARG...]: runs a command in a memory cgroup (v1 or v2) of so many mebibytes, page cache
# included. Says on stderr what it was charged at most, and exits as the command did. Needs root.
set -euo pipefail
mib=$1
shift
for root in /sys/fs/cgroup/memory /sys/fs/cgroup; do
  group=$root/reflow-bench.$$
  mkdir "$group" 2> /dev/null || continue
  if [ -f "$group/memory.limit_in_bytes" ]; then limit=memory.limit_in_bytes peak=memory.max_usage_in_bytes; else limit=memory.max peak=memory.peak; fi
  if echo $((mib << 20)) 2> /dev/null > "$group/$limit"; then break; fi
  rmdir "$group"
  group=
done
[ -n "${group:-}" ] && [ -d "$group" ] || { echo "in_cgroup.sh: no memory cgroup can be made" >&2; exit 125; }
code=0
bash -c 'echo $$ > "$0/cgroup.procs"; exec "$@"' "$group" "$@" || code=$?
echo "in_cgroup: limit $mib MiB, peak $(($(cat "$group/$peak") >> 20)) MiB" >&2
for _ in 1 2 3 4 5; do rmdir "$group" 2> /dev/null && break; sleep 0.2; done
exit $code
