"""Real processes fail and are killed, and the run resumes to the same bits.

benchmarks/survival does the same 50 times and for longer.
"""

import resource
import shutil
import signal
import time

import pytest
from conftest import start, tiny_flags

from benchmarks.survival.kills import Kill, differences, train_with_kills
from benchmarks.survival.peers import free_port
from benchmarks.survival.processes import (
  SECONDS,
  finish,
  last_step,
  rows,
  until,
)
from calince_jax.runtime import checkpoint

pytestmark = pytest.mark.timeout(1200)  # for the first test, which trains

TERM, KILL = signal.SIGTERM, signal.SIGKILL
STEPS = 20
CHANGES = {
  "total_steps": STEPS,
  "log_every": 1,
  "checkpoint_every": 3,
  "keep_checkpoints": 2,
  "evaluate_every": 4,
  "evaluate_splits": "test",
  "objective.predictive_weight": 0.0,
  "objective.memory": 0.5,
  "objective.trust": "schedule",  # the memory of pairs goes with it
}
DEVICES = 2


def train(flags, workdir, log, *more):
  """Starts the training command."""
  where = f"--workdir={workdir}"
  return start("train", *flags, where, *more, devices=DEVICES, log=log)


@pytest.fixture(scope="module")
def flags(tiny_dataset):
  """The command line of the runs, without --workdir."""
  return tiny_flags(tiny_dataset, CHANGES)


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
  """The run to which nothing happens."""
  workdir = tmp_path_factory.mktemp("survival") / "alone"
  log = workdir.with_suffix(".log")
  finish(train(flags, workdir, log), log)
  return workdir


@pytest.fixture(scope="module")
def survivor(flags, forked_survival, tmp_path_factory):
  """The run to which everything happens, one after the other, till its end."""
  workdir = tmp_path_factory.mktemp("survivor") / "run"
  full_disk = run_on_a_full_disk(flags, workdir)
  lost_folder = run_without_its_folder(flags, workdir)
  kills = [
    Kill("step", TERM, steps=2, pause=0.0),
    Kill("save", KILL, steps=1, pause=0.0),
  ]
  done = train_with_kills(flags, workdir, kills, devices=DEVICES)
  return {
    "workdir": workdir,
    "full_disk": full_disk,
    "lost_folder": lost_folder,
    "kills": done,
    "log": workdir.with_suffix(".log").read_text(),
  }


def run_on_a_full_disk(flags, workdir):
  """The exit status, what was printed, and the checkpoints that are left."""
  log, folder = workdir.with_suffix(".full.log"), workdir / "checkpoints"
  process = train(flags, workdir, log)
  assert until((folder / "3").exists, process)
  # No file may grow beyond this: those of the checkpoints would.
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
  status = process.wait(SECONDS)
  kept = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  restored = checkpoint.restore_parts(str(workdir), None, ["step"])[0]
  return status, log.read_text(), kept, restored


def run_without_its_folder(flags, workdir):
  """Takes the folder away for a while; the exit status and what was printed."""
  log, elsewhere = workdir.with_suffix(".lost.log"), workdir.with_name("moved")
  before = last_step(workdir)
  process = train(flags, workdir, log)
  assert until(lambda: last_step(workdir) > before, process)
  workdir.rename(elsewhere)
  # The run writes meanwhile, and may make a new folder.
  end = time.monotonic() + SECONDS
  while process.poll() is None and time.monotonic() < end:
    shutil.rmtree(workdir, ignore_errors=True)
    time.sleep(0.001)
  status = process.wait(SECONDS)
  shutil.rmtree(workdir, ignore_errors=True)
  elsewhere.rename(workdir)
  return status, log.read_text()


def test_killed_runs_resume_to_the_same_bits(survivor, alone, tmp_path):
  workdir, kills, log = (survivor[k] for k in ("workdir", "kills", "log"))
  assert [kill["moment"] for kill in kills] == ["step", "save"]
  assert [kill["status"] for kill in kills] == [0, -KILL]
  assert differences(workdir, alone) == []
  assert len(rows(workdir)) == STEPS
  assert log.count("stopped: saved step") == 1
  assert f"finished: step {STEPS}" in log
  assert "Traceback" not in log
  # The comparison sees a run that differs.
  assert differences(workdir, damaged(alone, tmp_path / "other"))


def damaged(run, folder):
  """A copy of a run with one row of its metrics changed."""
  shutil.copytree(run, folder)
  path = folder / "metrics.jsonl"
  path.write_text(path.read_text().replace('"loss": ', '"loss": 1', 1))
  return folder


def test_a_full_disk_ends_the_run_and_costs_no_checkpoint(survivor):
  status, log, kept, restored = survivor["full_disk"]
  assert status == 2
  assert "error: no checkpoint can be saved in" in log
  assert "make room" in log and "Traceback" not in log
  assert kept and f"whole there: {', '.join(map(str, kept))}" in log
  assert restored == max(kept)


def test_a_folder_that_is_taken_away_is_reported(survivor):
  status, log = survivor["lost_folder"]
  assert status == 2
  assert "error: " in log and str(survivor["workdir"]) in log.splitlines()[-1]
  assert "Traceback" not in log


def test_one_process_of_two_does_not_wait_for_ever(flags, tmp_path):
  log = tmp_path / "log"
  process = train(
    flags,
    tmp_path / "run",
    log,
    f"--coordinator_address=localhost:{free_port()}",
    "--num_processes=2",
    "--process_id=1",
    "--start_timeout=2",
  )
  assert process.wait(SECONDS) == 2
  assert "waiting for 2 processes" in log.read_text()
  assert "not 2 processes of the run have joined" in log.read_text()
  assert not (tmp_path / "run").exists()
