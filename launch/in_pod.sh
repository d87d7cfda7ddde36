#!/usr/bin/env bash
# Runs training in a container; its status says whether to start it again.
#
#   bash launch/in_pod.sh --config=FILE --workdir=DIR [flags of train]
#
# Training that is sent SIGTERM saves a checkpoint and ends with 0, as if it were
# finished. Kubernetes would not start it again then, so this ends with 143.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stopped=""
trap 'stopped=yes; kill -TERM "$!" 2>/dev/null' TERM
.venv/bin/python -m calince_jax.train --distributed=auto "$@" &
status=0
wait "$!" || status=$?
if [[ -n $stopped ]]; then
  status=0
  wait "$!" || status=$? # the signal may have interrupted the first wait
  ((status != 0)) || status=143
fi
exit "$status"
