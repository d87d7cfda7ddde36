"""slurm.sbatch against fake sbatch, srun, scontrol and scancel."""

import shlex
from pathlib import Path

import pytest
from fakes import ROOT, Place, executable

# A step that lasts until it is sent TERM, and says so; it also plays the part
# of slurmd, which signals the batch shell at the time limit.
LONG_SRUN = """#!/usr/bin/env bash
trap 'echo saved >>"$RECORD.saved"; exit 0' TERM
echo $$ >"$RECORD.pid"
kill -USR1 $PPID
for _ in $(seq 100); do sleep 0.1; done
exit 9
"""
SCANCEL = """#!/usr/bin/env bash
echo "$*" >"$RECORD.scancel"
kill -TERM "$(cat "$RECORD.pid")"
"""

EXTRA = [
  "--config.data.datasets=/data/it's mine",
  "--config.model.video.tubelet=(2, 16)",
  '--config.data.split="$HOME" *',
]


@pytest.fixture
def place(tmp_path):
  return Place(tmp_path)


JOB = ["--config=configs/base.py", "--workdir=/scratch/my run", *EXTRA]
SRUN = [
  "srun",
  "--kill-on-bad-exit=1",
  ".venv/bin/python",
  "-m",
  "calince_jax.train",
  "--distributed=auto",
  *JOB,
]


def test_slurm_starts_one_step(place):
  done = place.run(
    "sbatch", "launch/slurm.sbatch", *JOB, SLURM_GPUS_ON_NODE="4"
  )
  assert done.returncode == 0, done.stderr
  ((argv, variables),) = place.records()
  assert argv == SRUN
  assert variables["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
  assert variables["SRUN_CPUS_PER_TASK"] == "8"


def test_slurm_without_gpus_leaves_the_devices_to_jax(place):
  place.run("sbatch", "launch/slurm.sbatch", *JOB)
  ((_, variables),) = place.records()
  assert "JAX_LOCAL_DEVICE_IDS" not in variables


def test_slurm_dry_run(place):
  done = place.run("bash", "launch/slurm.sbatch", "--dry_run", *JOB)
  assert done.returncode == 0 and place.calls() == []
  assert shlex.split(done.stdout) == SRUN


def test_slurm_failure_is_not_requeued(place):
  done = place.run("sbatch", "launch/slurm.sbatch", *JOB, FAIL="-m:3")
  assert done.returncode == 3
  assert [call[0] for call in place.calls()] == ["srun"]


def test_slurm_saves_and_is_requeued_at_the_time_limit(place):
  executable(place.bin / "srun", LONG_SRUN)
  executable(place.bin / "scancel", SCANCEL)
  done = place.run("sbatch", "launch/slurm.sbatch", *JOB)
  assert done.returncode == 0, done.stderr
  assert Path(f"{place.record}.saved").read_text() == "saved\n"
  assert Path(f"{place.record}.scancel").read_text() == "--signal=TERM 17\n"
  assert place.calls() == [["scontrol", "requeue", "17"]]


@pytest.mark.parametrize(
  ("words", "folder", "message"),
  [
    (["--workdir=/a"], ".", "is missing"),
    (["--config=configs/base.py"], ".", "is missing"),
    (JOB, "configs", "submit from the root"),
  ],
)
def test_slurm_bad_input_is_one_line(place, words, folder, message):
  script = place.root / "launch/slurm.sbatch"
  done = place.run("sbatch", script, *words, cwd=place.root / folder)
  assert done.returncode == 2 and place.calls() == []
  assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_slurm_sees_every_option_line():
  """Sbatch stops reading #SBATCH at the first command."""
  lines = (ROOT / "launch/slurm.sbatch").read_text().splitlines()
  head = lines[: lines.index("set -euo pipefail")]
  options = [line for line in lines if line.startswith("#SBATCH")]
  assert [line for line in head if line.startswith("#SBATCH")] == options
  assert {
    "#SBATCH --requeue",
    "#SBATCH --ntasks-per-node=1",
    "#SBATCH --signal=B:USR1@300",
  } <= set(options)
  assert all(line.startswith("#") for line in head)
