#!/bin/bash
# run.sh [REFLOW] [--shots DIR]: opens what `reflow report` and `reflow search` draw in headless Chromium.
#
# Needs Debian's chromium, which it installs where it runs as root, and Python without any package. Demands of each page, at the width of a desk and of a phone, in light
# and in dark: nothing on the console, no request, no wider than the window, every picture named, every section there.
set -euo pipefail
cd "$(dirname "$0")/../.."
reflow=target/release/reflow shots=()
while [ $# -gt 0 ]; do
  case $1 in
    --shots) shots=(--shots "$2"); shift 2 ;;
    *) reflow=$1; shift ;;
  esac
done
[ -x "$reflow" ] || cargo build --release --quiet
command -v python3 > /dev/null || { echo "NOT TESTED: no python3"; exit 0; }
if ! command -v chromium > /dev/null; then
  [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || { echo "NOT TESTED: no chromium, and not root to install it"; exit 0; }
  if ! { apt-get update -qq && apt-get install -y -qq chromium fonts-dejavu-core; } > /tmp/chromium-install.log 2>&1; then
    tail -3 /tmp/chromium-install.log
    echo "NOT TESTED: chromium cannot be installed"
    exit 0
  fi
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
llama=fixtures/llama
experts=(--expert $llama/expert1 --expert $llama/expert2 --expert $llama/expert3)
"$reflow" merge --base $llama/base "${experts[@]}" --statistics --out "$work/pcb" -q > /dev/null
"$reflow" merge --method linear "${experts[@]}" --param weight=1 --statistics --out "$work/linear" -q > /dev/null
python3 tests/browser/synthetic.py "$work/large" 80 16
python3 tests/browser/synthetic.py "$work/single" 3 1
pages=()
for dir in pcb linear large single; do
  "$reflow" report "$work/$dir" --out "$work/$dir.html" > /dev/null
  pages+=("$work/$dir.html")
done
size=$(stat -c %s "$work/large.html")
[ "$size" -lt 6000000 ] || { echo "the page of 80 layers and 16 experts has $size bytes"; exit 1; }
cat > "$work/recipe.yml" << YAML
merge_method: pcb
base_model: $PWD/$llama/base
models: [{model: $PWD/$llama/expert1}, {model: $PWD/$llama/expert2}, {model: $PWD/$llama/expert3}]
parameters: {keep: 0.1}
YAML
# A score that differs from one candidate to the next: its hash.
score='test -d {model} && sha256sum {model}/model.safetensors | tr -dc 1-9 | head -c 3'
"$reflow" search "$work/recipe.yml" --evaluate "$score" --budget 12 --out "$work/found" -q > /dev/null
pages+=("$work/found/trials.svg")
python3 tests/browser/page.py "${shots[@]}" "${pages[@]}"
