#!/bin/bash
# recipe.sh METHOD FAMILY: a mergekit recipe for the family of run.sh, to standard output; --all: the methods there are recipes for.
set -euo pipefail
[ "$1" != --all ] || { echo linear task_arithmetic ties breadcrumbs della sce dare_ties slerp; exit; }
method=$1 family=$2 each=() all=""
case $method in
  linear | task_arithmetic) each=("weight: 0.5" "weight: 0.3" "weight: 0.2") ;;
  ties | breadcrumbs) each=("weight: 1, density: 0.2" "weight: 1, density: 0.2" "weight: 1, density: 0.2") ;;
  della | dare_ties) each=("weight: 1, density: 0.5" "weight: 1, density: 0.5" "weight: 1, density: 0.5") ;;
  sce) each=("" "" "") all="select_topk: 0.1" ;;
  slerp) each=("") all="t: 0.3" ;;
  *) echo "recipe.sh: no recipe for $method" >&2; exit 2 ;;
esac
echo "merge_method: $method"
[ "$method" = linear ] || echo "base_model: $family/base"
echo "models:"
for n in "${!each[@]}"; do echo "  - {model: $family/expert$((n + 1)), parameters: {${each[n]}}}"; done
[ -z "$all" ] || echo "parameters: {$all}"
echo "dtype: bfloat16"
