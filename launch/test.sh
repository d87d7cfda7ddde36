#!/usr/bin/env bash
# Sets up what is missing, then checks the format, the imports and the tests.
# Usage: bash launch/test.sh [--quick] [pytest arguments]
# --quick leaves out the files that tests/conftest.py lists as slow.
set -euo pipefail
quick=()
if [[ "${1:-}" == "--quick" ]]; then
  quick=(-m "not slow")
  shift
fi
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
"$PY" -m ruff check .
"$PY" -m ruff format --check .
.venv/bin/lint-imports --no-logo
# A worker holds about 1 GB, and twice as much while it compiles a train step.
memory="$(awk '/^MemAvailable/ {print int($2 / 2000000)}' /proc/meminfo \
  2>/dev/null || true)"
workers="$(getconf _NPROCESSORS_ONLN)"
if [[ -n "$memory" && "$memory" -lt "$workers" ]]; then
  workers="$((memory > 0 ? memory : 1))"
fi
# Each thread would otherwise keep a heap of its own.
export MALLOC_ARENA_MAX=2
# A file's tests stay together, so that its fixtures are made once; the slowest
# files come first (conftest.py), so that no worker ends with one of them.
"$PY" -m pytest -n "$workers" --dist=loadfile --no-loadscope-reorder \
  --durations=10 ${quick[@]+"${quick[@]}"} "$@"
