#!/usr/bin/env bash
# Makes .venv from the pinned requirements.txt, once for each change of it.
# Usage: source launch/setup.sh   (goes to the repository root and leaves $PY)
# PYTHON=python3.12 chooses the interpreter: 3.11, 3.12 or 3.13. A .venv that is
# there keeps its own; remove it to change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PY=.venv/bin/python
stamp=".venv/requirements.sha256"
if ! sha256sum --check --status "$stamp" 2>/dev/null; then
  base="${PYTHON:-python3}"
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $base is missing or older than Python 3.11;" \
      "set PYTHON=/path/to/python3.11 and run again" >&2
    exit 1
  fi
  echo "+ $base -m venv .venv"
  if ! "$base" -m venv .venv; then
    echo "error: this Python cannot make a virtual environment; install" \
      "its venv module (on Debian: apt-get install python3-venv)" >&2
    exit 1
  fi
  echo "+ .venv/bin/python -m pip install --require-hashes -r requirements.txt"
  "$PY" -m pip install --quiet --disable-pip-version-check \
    --require-hashes -r requirements.txt
  sha256sum requirements.txt >"$stamp"
fi
