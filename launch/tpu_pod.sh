#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU pod slice; run it again to resume.
#
#   bash launch/tpu_pod.sh --name=NAME --zone=ZONE \
#     --config=configs/cali_nce.py --workdir=gs://BUCKET/RUN \
#     [--dry_run] -- [--config.key=value ...]
#
#   --name, --zone    of the TPU; also --project if gcloud has no default
#   --accelerator, --runtime_version   create the TPU first (for example
#                     v5litepod-16 and v2-alpha-tpuv5-lite); leave them out if
#                     it exists
#   --config          a configuration of this repository, as committed (HEAD)
#   --workdir         the run folder, which all workers can reach: gs://... or
#                     an absolute path on a shared disk; the same holds for data
#   --python          Python 3.11 or newer on the workers; default: python3.11,
#                     which is installed with apt-get if it is missing
#   --dry_run         print every command and run none
#   -- ...            flags that are passed to calince_jax.train
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

# quote WORD...: the words as one shell command line, quoted where needed.
quote() {
  local word line=""
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

run() {
  echo "+ $(quote "$@")"
  if [[ -z $dry_run ]]; then
    "$@"
  fi
}

name="" zone="" project="" accelerator="" runtime_version=""
config="" workdir="" python="python3.11" dry_run=""
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --accelerator=*) accelerator="${1#*=}" ;;
    --runtime_version=*) runtime_version="${1#*=}" ;;
    --config=*) config="${1#*=}" ;;
    --workdir=*) workdir="${1#*=}" ;;
    --python=*) python="${1#*=}" ;;
    --dry_run) dry_run=yes ;;
    --)
      shift
      break
      ;;
    *)
      fail "unknown option '$1'; write --name=value, and the flags for" \
        "training after --"
      ;;
  esac
  shift
done
for option in name zone config workdir; do
  [[ -n ${!option} ]] ||
    fail "--$option=... is missing; see the head of launch/tpu_pod.sh"
done
case "$workdir" in
  gs://?* | /*) ;;
  *)
    fail "--workdir=$workdir must be gs://... or an absolute path on a disk" \
      "that all workers share"
    ;;
esac
if [[ -n $accelerator && -z $runtime_version ||
  -z $accelerator && -n $runtime_version ]]; then
  fail "--accelerator and --runtime_version go together; give both or neither"
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -f ${config%%:*} ]] ||
  fail "--config=$config: there is no file ${config%%:*} in the repository"
if [[ -z $dry_run ]]; then
  command -v gcloud >/dev/null ||
    fail "gcloud is missing; install the Google Cloud CLI"
  if [[ -n $(git status --porcelain) ]]; then
    echo "note: what is not committed is not copied to the workers" >&2
  fi
fi

tpu=(gcloud compute tpus tpu-vm)
where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

# on_all LINE...: runs the lines in bash on every worker at the same time.
on_all() {
  local script="set -e" line
  for line in "$@"; do
    script+="; $line"
  done
  run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all "--command=$script"
}

if [[ -n $accelerator ]]; then
  run "${tpu[@]}" create "$name" "${where[@]}" \
    "--accelerator-type=$accelerator" "--version=$runtime_version"
fi

archive="calince_jax.tar.gz"
folder="."
if [[ -z $dry_run ]]; then
  folder="$(mktemp -d)"
  trap 'rm -rf "$folder"' EXIT
fi
run git archive --format=tar.gz "--output=$folder/$archive" HEAD
run "${tpu[@]}" scp "$folder/$archive" "$name:" "${where[@]}" --worker=all

# Keeps .venv and replaces everything else by the contents of the archive.
on_all "mkdir -p calince_jax" \
  "find calince_jax -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +" \
  "tar -xzf $archive -C calince_jax"

# requirements.txt pins JAX for the CPU; [tpu] adds the libtpu of that version.
# The variables are expanded on the worker, not on this machine.
python="$(quote "$python")"
# shellcheck disable=SC2016
on_all "cd calince_jax" "export PYTHON=$python" \
  'if ! "$PYTHON" -c "import ensurepip"; then sudo apt-get -q update' \
  'sudo apt-get -qy install "$PYTHON" "$PYTHON-venv"' "fi" \
  "source launch/setup.sh" \
  'version="$("$PY" -c "import jax; print(jax.__version__)")"' \
  '"$PY" -m pip install --quiet "jax[tpu]==$version"'

train=(.venv/bin/python -m calince_jax.train "--config=$config"
  "--workdir=$workdir" --distributed=auto "$@")
on_all "cd calince_jax" "$(quote "${train[@]}")"
