#!/bin/bash
# Fault injection: run.sh target/release/reflow [--quick | --nightly] [--seed N] [--only kills,errors,..]
# What this machine cannot do is skipped, and said.
set -euo pipefail
cd "$(dirname "$0")"

declare -A packages=([strace]=strace [faketime]=faketime [mkfs.ext4]=e2fsprogs [chattr]=e2fsprogs [prlimit]=util-linux [setpriv]=util-linux
  [unshare]=util-linux)
missing=()
for tool in "${!packages[@]}"; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" > /dev/null || missing+=("${packages[$tool]}")
done
if [ "${#missing[@]}" -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } > /dev/null 2>&1 \
    || echo "could not install: ${missing[*]}"
fi
if ! command -v python3 > /dev/null; then
  echo "NOT TESTED: faults (no python3)"
  exit 0
fi
reflow=$(cd "$OLDPWD" && realpath "$1")
shift
PATH=$PATH:/usr/sbin:/sbin exec python3 -B . "$reflow" "$@"
