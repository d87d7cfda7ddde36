#!/usr/bin/env bash
# From nothing to a trained, evaluated and exported model with its report.
# Usage: bash launch/quickstart.sh [FOLDER]    (default: runs/quickstart)
# Run again, it reuses what is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
out="${1:-runs/quickstart}"

mkdir -p "$out"
times="$out/times.csv" # of the first time, when nothing is reused
[ -e "$times" ] && times=/dev/null
printf 'installation,%d\n' "$SECONDS" >"$times"

run() {
  local start="$SECONDS"
  printf '\n+ %s\n' "$*"
  "$@"
  printf '%s,%d\n' "${3##*.}" $((SECONDS - start)) >>"$times"
}

# Does the rest unless its result is there already.
unless() {
  local result="$1"
  shift
  if [ -e "$result" ]; then
    printf '\n  %s is there and is reused\n' "$result"
  else
    run "$@"
  fi
}

run "$PY" -m calince_jax.data.synthetic --out="$out/corpus" \
  --num_clips=4000 --mismatch=0.3 --max_objects=2
run "$PY" -m calince_jax.prepare \
  --manifest="$out/corpus/manifest.csv" --out="$out/data"
run "$PY" -m calince_jax.train --config=configs/quickstart.py \
  --config.data.datasets="$out/data" --workdir="$out/run"
unless "$out/run/eval/calibration.json" \
  "$PY" -m calince_jax.evaluate --workdir="$out/run" \
  --task=retrieval,video_retrieval,recognition,calibration
unless "$out/model" \
  "$PY" -m calince_jax.export --workdir="$out/run" --out="$out/model"
run "$PY" -m calince_jax.report --workdir="$out/run"
printf '\ndone in %d min %02d s\n' $((SECONDS / 60)) $((SECONDS % 60))
