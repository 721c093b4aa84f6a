# Sourced by cold.sh and mergekit.sh with their arguments, [--family DIR] [--pairs N] [METHOD..], and the usual number of pairs in
# `pairs`. Sets `family`, `pairs` and `methods`, goes to the top of the project, and builds what is measured.
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
family=target/e2e/1b methods=()
while [ $# -gt 0 ]; do
  case $1 in
    --family) family=$2; shift 2 ;;
    --pairs) pairs=$2; shift 2 ;;
    *) methods+=("$1"); shift ;;
  esac
done
[ ${#methods[@]} -gt 0 ] || read -ra methods < <(benches/e2e/recipe.sh --all)
family=$(realpath "$family")
cargo build --release --quiet --bins
