#!/bin/sh
# Build the wheel, install it alone beside hydra, omegaconf, rich, numpy and scipy, and use it in an empty directory:
# help, configuration and plans must come without torch. Usage: wheel_check.sh PYTHON
set -eu
python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m build --wheel --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" -m venv "$work/venv"
pip="$work/venv/bin/python -m pip install --quiet --disable-pip-version-check -c $root/constraints.txt"
$pip hydra-core omegaconf rich numpy scipy
$pip --no-deps "$work"/dist/modexp-*.whl
mkdir "$work/empty"
cd "$work/empty"
"$work/venv/bin/modexp" --help >/dev/null
"$work/venv/bin/modexp" train --cfg job model=mod | grep -q 'kind: mod'
"$work/venv/bin/modexp" plan --budget 6e18 | grep -q 'baseline-225M-6e18-s0'
if "$work/venv/bin/python" -c 'import torch' 2>/dev/null; then echo "torch is there, so this proved nothing"; exit 1; fi
[ -z "$(ls -A)" ] || { echo "left in the directory: $(ls -A)"; exit 1; }
echo "wheel: help, train --cfg job and plan work without torch, in an empty directory"
