#!/usr/bin/env bash
# The whole path on real clips: prepare, train, evaluate, report; and again with
# 30 % of the training captions exchanged: does the score find them?
# Usage: bash benchmarks/real_clips.sh MANIFEST OUT [training flags]
# The manifest needs splits train and test; labels where it has them.
set -euo pipefail
manifest="$(realpath "$1")"
out="$(realpath -m "$2")"
shift 2
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
"$PY" -m calince_jax.prepare --manifest="$manifest" --out="$out/data"

train() {
  local run="$1"
  shift
  "$PY" -m calince_jax.train --config=configs/quickstart.py \
    --config.data.datasets="$out/data" --workdir="$out/$run" \
    --config.data.image_size=80 --config.data.min_crop_area=0.5 \
    --config.data.text_length=24 --config.model.dropout=0.1 \
    --config.optimizer.weight_decay=0.2 "$@"
}

train run --config.total_steps=1500 "$@"
"$PY" -m calince_jax.evaluate --workdir="$out/run" \
  --task=retrieval,video_retrieval,recognition,calibration
"$PY" -m calince_jax.report --workdir="$out/run"

train run_mismatch --config.total_steps=600 --config.data.mismatch=0.3 \
  --config.evaluate_every=100 --config.evaluate_splits=test "$@"
"$PY" -m calince_jax.evaluate --workdir="$out/run_mismatch" --task=calibration
"$PY" -m calince_jax.report --workdir="$out/run_mismatch"
