"""Gives the runs of a sweep to a cluster: Slurm, or JobSets on GKE."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from calince_jax.errors import UserError
from calince_jax.files import read_lines
from launch import gke_jobset
from launch.expand import Run

CLUSTERS = ("slurm", "jobset")


def to_slurm(
  runs: Sequence[Run], workdir: str, options: str, *, dry_run: bool
) -> None:
  """Submits launch/slurm.sbatch once for each run that is not finished.

  Args:
    runs: from expand.
    workdir: the folder of run NAME is WORKDIR/NAME.
    options: of sbatch, such as `--nodes=2 --gpus-per-node=8`.
    dry_run: prints the commands, and runs none.

  Raises:
    UserError: there is no sbatch, or it refuses a run; those before it are
      submitted.
  """
  if not dry_run and shutil.which("sbatch") is None:
    raise UserError("sbatch is missing; submit from a Slurm login node")
  for run in _unfinished(runs, workdir):
    command = [
      "sbatch",
      *shlex.split(options),
      f"--job-name={run.name}",
      "launch/slurm.sbatch",
      *_flags_of_train(run),
    ]
    print(f"+ {shlex.join(command)}", flush=True)
    if not dry_run:
      status = subprocess.run(command, check=False).returncode
      if status:
        raise UserError(
          f"run {run.name}: sbatch ended with status {status}; the runs above"
          " it are submitted"
        )


def to_jobsets(
  runs: Sequence[Run],
  workdir: str,
  cluster: gke_jobset.Cluster,
  *,
  dry_run: bool,
) -> None:
  """Submits a JobSet for each run that is not finished.

  Args:
    runs: from expand.
    workdir: the folder of run NAME is WORKDIR/NAME; all hosts reach it.
    cluster: of each run.
    dry_run: prints the manifests, as one YAML stream, and submits none.

  Raises:
    UserError: a host would not find `workdir`, or kubectl refuses a run.
  """
  if not re.match(r"gs://.|/", workdir):
    raise UserError(
      f"--workdir={workdir} must be gs://... or an absolute path that all hosts"
      " share"
    )
  for run in _unfinished(runs, workdir):
    name = jobset_name(workdir, run.name)
    manifest = gke_jobset.fill(name, cluster, _flags_of_train(run))
    if dry_run:
      print(f"---\n{manifest}", end="", flush=True)
    else:
      print(f"{run.name}: {name}", flush=True)
      gke_jobset.submit(manifest)


def jobset_name(workdir: str, run: str) -> str:
  """A name that Kubernetes takes, always the same for the same run folder."""
  plain = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")[:26].strip("-")
  digest = hashlib.sha256(f"{workdir}/{run}".encode()).hexdigest()[:8]
  return f"run-{plain}-{digest}"


def _flags_of_train(run):
  _, m, module, *words = run.commands[0]
  assert (m, module) == ("-m", "calince_jax.train"), run.commands[0]
  return words


def _unfinished(runs, workdir):
  """The runs whose folder, if it can be read from here, is not finished."""
  left = []
  for run in runs:
    path = Path(workdir) / run.name / "events.jsonl"
    lines = [] if "://" in workdir else read_lines(path)
    if lines and json.loads(lines[-1])["event"] == "finished":
      print(f"skip {run.name}: finished already", flush=True)
    else:
      left.append(run)
  return left
