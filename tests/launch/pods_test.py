"""tpu_pod.sh and slurm.sbatch against fake gcloud, sbatch, srun on the PATH."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

# Appends its argv and some variables to $RECORD; $FAIL=WORD:STATUS fails where
# WORD is an argument.
RECORDER = f"""#!{sys.executable}
import json, os, shutil, sys
name = os.path.basename(sys.argv[0])
told = ("JAX_LOCAL_DEVICE_IDS", "SRUN_CPUS_PER_TASK")
seen = {{name: os.environ[name] for name in told if name in os.environ}}
with open(os.environ["RECORD"], "a") as file:
  file.write(json.dumps([[name, *sys.argv[1:]], seen]) + "\\n")
for word in sys.argv[1:]:
  if name == "gcloud" and word.endswith(".tar.gz"):
    shutil.copy(word, os.path.dirname(os.environ["RECORD"]))
word, _, status = os.environ.get("FAIL", "").partition(":")
sys.exit(int(status) if word in sys.argv else 0)
"""

# Runs a copy of the script in a job, as Slurm does.
SBATCH = """#!/usr/bin/env bash
export SLURM_SUBMIT_DIR="$PWD" SLURM_JOB_ID=17 SLURM_CPUS_PER_TASK=8
while [[ $1 == --* ]]; do shift; done
cp "$1" "$SPOOL/slurm_script"
cd / && exec bash "$SPOOL/slurm_script" "${@:2}"
"""

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


def executable(path: Path, text: str) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)
  return path


@pytest.fixture
def place(tmp_path):
  """A committed repository, fakes, and how to run a script with them."""
  return Place(tmp_path)


class Place:
  """A repository of its own, so that nothing depends on this checkout."""

  def __init__(self, folder: Path):
    self.folder, self.root = folder, folder / "repository"
    self.bin, self.record = folder / "bin", folder / "record.jsonl"
    for name in ("gcloud", "srun", "scontrol", "scancel"):
      executable(self.bin / name, RECORDER)
    executable(self.bin / "sbatch", SBATCH)
    for name in ("launch/tpu_pod.sh", "launch/slurm.sbatch", "configs/base.py"):
      (self.root / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, self.root / name)
    executable(self.root / ".venv/bin/python", RECORDER)
    (self.root / ".gitignore").write_text(".venv/\n")
    (self.root / "calince_jax").mkdir()
    (self.root / "calince_jax" / "train.py").touch()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", self.root]
    for words in ("init -q", "add .", "commit -qm first"):
      subprocess.run([*git, *words.split()], check=True)

  def run(self, *words, cwd=None, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
      [str(word) for word in words],
      cwd=cwd or self.root,
      env=os.environ
      | {
        "PATH": f"{self.bin}:{os.environ['PATH']}",
        "RECORD": str(self.record),
        "SPOOL": str(self.folder),
      }
      | env,
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )

  def calls(self) -> list[list[str]]:
    return [argv for argv, _ in self.records()]

  def records(self) -> list:
    if not self.record.exists():
      return []
    return [json.loads(line) for line in self.record.read_text().splitlines()]


POD = {
  "name": "pod",
  "zone": "us-central2-b",
  "config": "configs/base.py:arg",
  "workdir": "gs://bucket/my run",
}
EXTRA = [
  "--config.data.datasets=/data/it's mine",
  "--config.model.video.tubelet=(2, 16)",
  '--config.data.split="$HOME" *',
]


def pod(place, *words, options=None, **env):
  options = POD if options is None else options
  flags = [f"--{name}={value}" for name, value in options.items()]
  return place.run("bash", "launch/tpu_pod.sh", *flags, *words, **env)


def remote_lines(place):
  """What the workers are told, one string a call of gcloud ssh."""
  flag = "--command="
  return [
    next(word for word in call if word.startswith(flag)).removeprefix(flag)
    for call in place.calls()
    if "ssh" in call
  ]


def test_pod_commands(place):
  done = pod(
    place,
    "--project=p",
    "--accelerator=v5litepod-16",
    "--runtime_version=v2-alpha-tpuv5-lite",
    "--",
    *EXTRA,
  )
  assert done.returncode == 0, done.stderr
  calls = place.calls()
  tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
  where = ["--zone=us-central2-b", "--project=p"]
  assert calls[0] == [
    *tpu,
    "create",
    "pod",
    *where,
    "--accelerator-type=v5litepod-16",
    "--version=v2-alpha-tpuv5-lite",
  ]
  assert calls[1][:5] == [*tpu, "scp"]
  assert calls[1][5].endswith("/calince_jax.tar.gz")
  assert calls[1][6:] == ["pod:", *where, "--worker=all"]
  assert len(calls) == 5
  for call in calls[2:]:
    assert call[:-1] == [*tpu, "ssh", "pod", *where, "--worker=all"]
  # The archive was made, and its folder is gone.
  assert (place.folder / "calince_jax.tar.gz").stat().st_size > 0
  assert not Path(calls[1][5]).parent.exists()


def test_pod_that_is_there_is_not_created(place):
  assert pod(place).returncode == 0
  assert [call[4] for call in place.calls()] == ["scp", "ssh", "ssh", "ssh"]


def test_pod_dry_run_prints_what_a_run_does_and_does_nothing(place):
  dry = pod(place, "--dry_run", "--", *EXTRA)
  assert dry.returncode == 0 and place.calls() == []
  assert not (place.root / "calince_jax.tar.gz").exists()
  printed = [shlex.split(line)[1:] for line in dry.stdout.splitlines()]
  assert all(line.startswith("+ ") for line in dry.stdout.splitlines())
  pod(place, "--", *EXTRA)
  gcloud = [words for words in printed if words[0] == "gcloud"]
  real = place.calls()
  real[0][5] = "./calince_jax.tar.gz"  # in a temporary folder when run
  assert gcloud == real
  assert [words[:2] for words in printed if words not in gcloud] == [
    ["git", "archive"]
  ]


def test_pod_arguments_survive_two_shells(place):
  pod(place, "--", *EXTRA)
  unpack, setup, train = remote_lines(place)
  home = place.folder / "home"
  # First start on a worker, and a second one over an old copy.
  for name in ("old.py", ".venv/bin/python"):
    executable(home / "calince_jax" / name, RECORDER)
  shutil.copy(place.folder / "calince_jax.tar.gz", home)
  done = place.run("bash", "-c", unpack, cwd=home)
  assert done.returncode == 0, done.stderr
  assert not (home / "calince_jax/old.py").exists()
  assert (home / "calince_jax/.venv/bin/python").exists()
  assert (home / "calince_jax/configs/base.py").exists()

  place.record.unlink()
  done = place.run("bash", "-c", train, cwd=home)
  assert done.returncode == 0, done.stderr
  assert place.calls() == [
    [
      "python",
      "-m",
      "calince_jax.train",
      "--config=configs/base.py:arg",
      "--workdir=gs://bucket/my run",
      "--distributed=auto",
      *EXTRA,
    ]
  ]
  assert "jax[tpu]" in setup


@pytest.mark.parametrize("has_python", [True, False])
def test_pod_setup_adds_libtpu_of_the_pinned_version(place, has_python):
  pod(place, "--python=python3.99")
  setup = remote_lines(place)[1]
  place.record.unlink()
  home = place.folder / "home"
  executable(
    home / "calince_jax/launch/setup.sh", f"PY={place.bin}/venv_python\n"
  )
  executable(
    place.bin / "venv_python",
    f'#!/bin/sh\n[ "$1" = -c ] && echo 1.2.3 || {place.bin}/gcloud "$@"\n',
  )
  executable(place.bin / "sudo", RECORDER)
  if has_python:
    executable(place.bin / "python3.99", "#!/bin/sh\n")
  done = place.run("bash", "-c", setup, cwd=home)
  assert done.returncode == 0, done.stderr
  *installs, pip = place.calls()
  assert pip[1:] == ["-m", "pip", "install", "--quiet", "jax[tpu]==1.2.3"]
  assert [call[:2] for call in installs] == (
    [] if has_python else [["sudo", "apt-get"]] * 2
  )
  if installs:
    assert installs[1][-2:] == ["python3.99", "python3.99-venv"]


@pytest.mark.parametrize("missing", list(POD))
def test_pod_names_the_missing_option(place, missing):
  options = {name: value for name, value in POD.items() if name != missing}
  done = pod(place, "--dry_run", options=options)
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith(f"error: --{missing}=... is missing")
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--workdir=runs/1"], "must be gs://"),
    (["--accelerator=v5litepod-16"], "go together"),
    (["--config=configs/none.py"], "there is no file configs/none.py"),
    (["--speed=9"], "unknown option '--speed=9'"),
    (["--name", "pod"], "unknown option '--name'"),
  ],
)
def test_pod_bad_input_is_one_line(place, words, message):
  done = pod(place, *words)
  assert done.returncode == 2 and place.calls() == []
  assert done.stderr.startswith("error: ") and message in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_pod_failure_of_gcloud_ends_it(place):
  done = pod(place, FAIL="scp:7")
  assert done.returncode == 7
  assert [call[4] for call in place.calls()] == ["scp"]


def test_pod_says_that_uncommitted_work_stays_behind(place):
  assert "not committed" not in pod(place).stderr
  (place.root / "new.py").touch()
  assert "not committed" in pod(place).stderr


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


def test_the_readme_commands_for_pods(place):
  shutil.copy(ROOT / "configs/cali_nce.py", place.root / "configs")
  readme = (ROOT / "launch/README.md").read_text()
  blocks = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
  pod_block = next(text for text in blocks if "tpu_pod.sh" in text)
  slurm_block = next(text for text in blocks if "sbatch" in text)
  done = place.run("bash", "-c", pod_block)
  assert done.returncode == 0, done.stderr
  assert "--config.data.datasets=/mnt/data/webvid" in remote_lines(place)[2]
  place.record.unlink()
  done = place.run("bash", "-c", slurm_block)
  assert done.returncode == 0, done.stderr
  assert place.calls()[0][-1] == "--config.data.datasets=/scratch/webvid"
