#!/usr/bin/env bash
# Generates a corpus, trains, evaluates and exports a model, writes its report.
# Usage: bash launch/quickstart.sh [FOLDER]    (default: runs/quickstart)
# A second run reuses the results in FOLDER.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
out="${1:-runs/quickstart}"

mkdir -p "$out"
times="$out/times.csv" # seconds of the first run only: it reuses nothing
[ -e "$times" ] && times=/dev/null
printf 'installation,%d\n' "$SECONDS" >"$times"

run() {
  local start="$SECONDS"
  printf '\n+ %s\n' "$*"
  "$@"
  printf '%s,%d\n' "${3##*.}" $((SECONDS - start)) >>"$times"
}

# unless RESULT COMMAND...: runs the command unless its result exists.
unless() {
  local result="$1"
  shift
  if [ -e "$result" ]; then
    printf '\n  %s exists and is reused\n' "$result"
  else
    run "$@"
  fi
}

run "$PY" -m calince_jax.data.synthetic --out="$out/corpus" \
  --num_clips=4000 --num_val=0 --mismatch=0.3 --style=plain --max_objects=1 \
  --size=32
run "$PY" -m calince_jax.prepare \
  --manifest="$out/corpus/manifest.csv" --out="$out/data" --short_side=32 \
  --vocab_size=400
run "$PY" -m calince_jax.train --config=configs/quickstart.py \
  --config.data.datasets="$out/data" --workdir="$out/run"
unless "$out/run/eval/calibration.json" \
  "$PY" -m calince_jax.evaluate --workdir="$out/run" \
  --task=retrieval,video_retrieval,recognition,calibration
unless "$out/model" \
  "$PY" -m calince_jax.export --workdir="$out/run" --out="$out/model"
run "$PY" -m calince_jax.report --workdir="$out/run"
printf '\ndone in %d min %02d s\n' $((SECONDS / 60)) $((SECONDS % 60))
