#!/usr/bin/env bash
# Sets up what is missing, then lints and tests.
# Usage: bash launch/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
"$PY" -m ruff check .
"$PY" -m ruff format --check .
"$PY" -m pytest -n "$(nproc)" "$@"
