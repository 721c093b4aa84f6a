#!/bin/bash
# setup.sh: prints the python of a virtual environment with mergekit 0.1.5, and makes the environment if need be.
#
# The place is $REFLOW_PARITY_VENV, by default target/parity-venv. Making it takes minutes and 6 GB of disk, since torch
# from PyPI brings its GPU libraries along.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${REFLOW_PARITY_VENV:-$here/../../target/parity-venv}
stamp=$venv/parity-requirements.txt
if ! cmp -s "$here/requirements.txt" "$stamp"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" >&2
  cp "$here/requirements.txt" "$stamp"
fi
echo "$venv/bin/python"
