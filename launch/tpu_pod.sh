#!/usr/bin/env bash
# Trains on all workers of one or several Cloud TPU slices.
#
#   bash launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE [--num_slices=N] \
#     [--project=PROJECT] [--dry_run] [options of the command]
#
#   create   asks for the slices as a queued resource, and waits for them:
#            --accelerator and --runtime_version, for example v5litepod-256 and
#            v2-alpha-tpuv5-lite; --spot for machines that may be taken away
#   run      copies HEAD to every worker, sets it up, and starts training, which
#            goes on when you leave; the same command resumes the run:
#            --config    a configuration of this repository, as committed
#            --workdir   the run folder, which all workers can reach: gs://...
#                        or an absolute path on a shared disk, like the data
#            --python    Python 3.11 or newer on the workers; python3.11 is the
#                        default, installed with apt-get where it is missing
#            -- ...      flags that are passed to calince_jax.train
#   logs     shows what a worker prints, until Ctrl-C: --worker=0 --slice=0
#   stop     asks training to save a checkpoint, and waits until it has ended
#   delete   deletes the slices: they cost money until then
#
# A single slice is the TPU called NAME; several are NAME-0, NAME-1 and so on,
# and JAX on their workers learns the number of slices from the machines.
# --dry_run prints every command and runs none.
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

command="${1:-}"
case "$command" in
  create | run | logs | stop | delete) shift ;;
  *)
    fail "the first argument is create, run, logs, stop or delete, not" \
      "'$command'; see the head of launch/tpu_pod.sh"
    ;;
esac
name="" zone="" project="" accelerator="" runtime_version="" spot=""
config="" workdir="" python="python3.11" num_slices=1 slice=0 worker=0
dry_run=""
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --num_slices=*) num_slices="${1#*=}" ;;
    --accelerator=*) accelerator="${1#*=}" ;;
    --runtime_version=*) runtime_version="${1#*=}" ;;
    --spot) spot=yes ;;
    --config=*) config="${1#*=}" ;;
    --workdir=*) workdir="${1#*=}" ;;
    --python=*) python="${1#*=}" ;;
    --slice=*) slice="${1#*=}" ;;
    --worker=*) worker="${1#*=}" ;;
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

needed=(name zone)
case "$command" in
  create) needed+=(accelerator runtime_version) ;;
  run) needed+=(config workdir) ;;
esac
for option in "${needed[@]}"; do
  [[ -n ${!option} ]] ||
    fail "--$option=... is missing; see the head of launch/tpu_pod.sh"
done
for option in num_slices slice worker; do
  [[ ${!option} =~ ^[0-9]+$ ]] ||
    fail "--$option=${!option} must be a whole number"
done
((num_slices > 0 && slice < num_slices)) ||
  fail "--num_slices must be at least 1, and --slice below it (it counts from" \
    "0)"
(($# == 0)) || [[ $command == run ]] ||
  fail "only run takes flags after --"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ $command == run ]]; then
  case "$workdir" in
    gs://?* | /*) ;;
    *)
      fail "--workdir=$workdir must be gs://... or an absolute path on a disk" \
        "that all workers share"
      ;;
  esac
  [[ -f ${config%%:*} ]] ||
    fail "--config=$config: there is no file ${config%%:*} in the repository"
fi
if [[ -z $dry_run ]]; then
  type -P gcloud >/dev/null ||
    fail "gcloud is missing; install the Google Cloud CLI"
fi

tpus=(gcloud compute tpus)
where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
nodes=("$name")
if ((num_slices > 1)); then
  nodes=()
  for ((i = 0; i < num_slices; i++)); do
    nodes+=("$name-$i")
  done
fi

# on_slices FUNCTION...: calls it for each slice, for all at the same time.
on_slices() {
  local node process status=0 processes=()
  for node in "${nodes[@]}"; do
    if [[ -n $dry_run || ${#nodes[@]} == 1 ]]; then
      "$@" "$node"
    else
      "$@" "$node" &
      processes+=("$!")
    fi
  done
  for process in ${processes[@]+"${processes[@]}"}; do
    wait "$process" || status=$?
  done
  return "$status"
}

ssh_to() { # SCRIPT NODE
  run "${tpus[@]}" tpu-vm ssh "$2" "${where[@]}" --worker=all "--command=$1"
}

copy_to() { # FILE NODE
  run "${tpus[@]}" tpu-vm scp "$1" "$2:" "${where[@]}" --worker=all
}

# on_workers LINE...: runs the lines in bash on every worker.
on_workers() {
  local script="set -e" line
  for line in "$@"; do
    script+="; $line"
  done
  on_slices ssh_to "$script"
}

create() {
  local as=("--node-id=$name") state=""
  if ((num_slices > 1)); then
    as=("--node-count=$num_slices" "--node-prefix=$name")
  fi
  [[ -z $spot ]] || as+=(--spot)
  run "${tpus[@]}" queued-resources create "$name" "${where[@]}" "${as[@]}" \
    "--accelerator-type=$accelerator" "--runtime-version=$runtime_version"
  local look=("${tpus[@]}" queued-resources describe "$name" "${where[@]}"
    "--format=value(state.state)")
  echo "+ $(quote "${look[@]}")"
  [[ -z $dry_run ]] || return 0
  while [[ $state != ACTIVE ]]; do
    state="$("${look[@]}")"
    echo "$name is $state"
    case "$state" in
      ACTIVE) ;;
      FAILED | SUSPENDING | SUSPENDED)
        fail "the slices were not given: see gcloud compute tpus" \
          "queued-resources describe $name; then delete it and ask again"
        ;;
      *) sleep "${POLL_SECONDS:-30}" ;;
    esac
  done
}

# Whether training runs on a worker, as a condition of its shell.
# shellcheck disable=SC2016
running='grep -qs calince_jax.train "/proc/$(cat calince_jax.pid)/cmdline"'

start() {
  if [[ -z $dry_run && -n $(git status --porcelain) ]]; then
    echo "note: what is not committed is not copied to the workers" >&2
  fi
  local archive="calince_jax.tar.gz" folder="." train
  if [[ -z $dry_run ]]; then
    folder="$(mktemp -d)"
    # shellcheck disable=SC2064
    trap "rm -rf '$folder'" EXIT
  fi
  run git archive --format=tar.gz "--output=$folder/$archive" HEAD
  on_slices copy_to "$folder/$archive"

  # Keeps .venv and replaces everything else by the contents of the archive.
  on_workers "touch calince_jax.pid" "if $running" \
    "then echo 'error: training runs here; stop it first' >&2" "exit 1" "fi" \
    "mkdir -p calince_jax" \
    "find calince_jax -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +" \
    "tar -xzf $archive -C calince_jax"

  # requirements.txt pins JAX for the CPU; [tpu] adds the libtpu of that
  # version. The variables are expanded on the worker, not on this machine.
  # shellcheck disable=SC2016
  on_workers "cd calince_jax" "export PYTHON=$(quote "$python")" \
    'if ! "$PYTHON" -c "import ensurepip"; then sudo apt-get -q update' \
    'sudo apt-get -qy install "$PYTHON" "$PYTHON-venv"' "fi" \
    "source launch/setup.sh" \
    'version="$("$PY" -c "import jax; print(jax.__version__)")"' \
    '"$PY" -m pip install --quiet "jax[tpu]==$version"'

  train=(.venv/bin/python -m calince_jax.train "--config=$config"
    "--workdir=$workdir" --distributed=auto "$@")
  # shellcheck disable=SC2016
  on_workers "cd calince_jax" \
    "nohup $(quote "${train[@]}") >>../calince_jax.log 2>&1 </dev/null &"' true' \
    'echo "$!" >../calince_jax.pid'
  if [[ -z $dry_run ]]; then
    local flags=("--name=$name" "${where[@]}" "--num_slices=$num_slices")
    echo "training is started; see: bash launch/tpu_pod.sh logs" \
      "$(quote "${flags[@]}")"
  fi
}

case "$command" in
  create) create ;;
  run) start "$@" ;;
  logs)
    run "${tpus[@]}" tpu-vm ssh "${nodes[slice]}" "${where[@]}" \
      "--worker=$worker" "--command=tail -n 200 -F calince_jax.log"
    ;;
  stop)
    # shellcheck disable=SC2016
    on_workers "if $running" 'then kill -TERM "$(cat calince_jax.pid)"' \
      'tail --pid="$(cat calince_jax.pid)" -f /dev/null' "fi" \
      "tail -n 3 calince_jax.log"
    ;;
  delete)
    run "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force \
      --quiet
    ;;
esac
