"""Real processes are killed, and the runs go on as if nothing had happened.

benchmarks/survival does the same 50 times and for longer.
"""

import functools
import re
import resource
import shutil
import signal
import time

import pytest
from conftest import QUICK, tiny_flags

from benchmarks.survival.kills import Kill, differences, train_with_kills
from benchmarks.survival.peers import (
  free_port,
  kill_one_of_two,
  peer_log,
  start_two,
)
from benchmarks.survival.processes import (
  SECONDS,
  finish,
  last_step,
  rows,
  until,
)
from benchmarks.survival.processes import start as start_command
from calince_jax.runtime import checkpoint

TERM, KILL = signal.SIGTERM, signal.SIGKILL
CHANGES = {
  "total_steps": 14,
  "log_every": 1,
  "checkpoint_every": 3,
  "keep_checkpoints": 2,
  "evaluate_every": 4,
  "evaluate_splits": "test",
  "objective.predictive_weight": 0.0,
  "objective.memory": 0.5,
}
start = functools.partial(start_command, "train", devices=2, xla=QUICK)


@pytest.fixture(scope="module")
def words(tiny_dataset):
  """The command line of the runs, without --workdir."""
  return tiny_flags(tiny_dataset, CHANGES)


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
  """The run that is left alone."""
  workdir = tmp_path_factory.mktemp("survival") / "alone"
  log = workdir.with_suffix(".log")
  finish(start(*words, f"--workdir={workdir}", log=log), log)
  return workdir


@pytest.mark.timeout(1200)
def test_killed_runs_go_on_to_the_same_bits(words, alone, tmp_path):
  kills = [
    Kill("step", TERM, steps=2, pause=0.0),
    Kill("save", KILL, steps=1, pause=0.0),
    Kill("step", KILL, steps=2, pause=0.2),
  ]
  workdir = tmp_path / "run"
  done = train_with_kills(words, workdir, kills, devices=2, xla=QUICK)
  assert [d["moment"] for d in done] == ["step", "save", "step"]
  assert [d["status"] for d in done] == [0, -KILL, -KILL]
  assert differences(workdir, alone) == []
  assert len(rows(workdir)) == 14
  said = workdir.with_suffix(".log").read_text()
  assert said.count("stopped: saved step") == 1 and "finished: step 14" in said
  assert "Traceback" not in said
  # The comparison sees a run that differs.
  assert differences(workdir, damaged(alone, tmp_path / "other"))


def damaged(run, folder):
  """A copy of a run with one row of its metrics changed."""
  shutil.copytree(run, folder)
  path = folder / "metrics.jsonl"
  path.write_text(path.read_text().replace('"loss": ', '"loss": 1', 1))
  return folder


def test_a_full_disk_ends_the_run_and_costs_no_checkpoint(
  words, alone, tmp_path
):
  workdir, log = tmp_path / "run", tmp_path / "log"
  process = start(*words, f"--workdir={workdir}", log=log)
  folder = workdir / "checkpoints"
  assert until((folder / "3").exists, process)
  # No file may grow beyond this: the checkpoints' do.
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
  assert process.wait(SECONDS) == 2
  said = log.read_text()
  assert "error: no checkpoint can be saved in" in said
  assert "make room" in said and "Traceback" not in said
  kept = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
  assert kept and f"complete there: {', '.join(map(str, sorted(kept)))}" in said
  assert checkpoint.restore_parts(str(workdir), None, ["step"])[0] == max(kept)
  finish(start(*words, f"--workdir={workdir}", log=log), log)
  assert differences(workdir, alone) == []


def test_a_folder_that_is_taken_away_is_said(words, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "log"
  process = start(*words, f"--workdir={workdir}", log=log)
  assert until((workdir / "checkpoints" / "3").exists, process)
  # The run writes meanwhile, so one pass may find new files in a folder.
  while workdir.exists() and process.poll() is None:
    shutil.rmtree(workdir, ignore_errors=True)
  assert process.wait(SECONDS) == 2
  said = log.read_text()
  assert "error: " in said and str(workdir) in said.splitlines()[-1]
  assert "Traceback" not in said


@pytest.mark.timeout(1200)
def test_two_processes_stop_together_and_end_together(words, tmp_path):
  workdir = tmp_path / "run"
  more = {"devices": 1, "xla": QUICK}
  words = [*words, "--peer_timeout=5"]

  # SIGTERM to one is heard by both.
  pair = start_two(words, workdir, **more)
  assert until(lambda: last_step(workdir) >= 2, pair[0])
  pair[1].send_signal(TERM)
  for i, process in enumerate(pair):
    finish(process, peer_log(workdir, i))
  stopped = last_step(workdir)
  assert f"stopped: saved step {stopped} of 14" in said_by(workdir, 0)
  assert (workdir / "checkpoints" / str(stopped)).exists()

  # One is killed: the other ends within the limit, and both go on.
  found = kill_one_of_two(words, workdir, victim=1, at_step=stopped + 1, **more)
  assert found["status"] == 1 and found["seconds"] < 30
  # The one or the other is seen first.
  lost = "no heartbeat|process 0 of the run has lost the others"
  assert re.search(lost, found["words"])
  assert "the same commands resume" in found["words"]
  assert "finished: step 14" in said_by(workdir, 0)

  # What one cannot do, all say; nobody waits.
  (workdir / "config.json").write_text("{")
  begin = time.monotonic()
  pair = start_two(words, workdir, **more)
  assert [p.wait(SECONDS) for p in pair] == [2, 1]
  assert time.monotonic() - begin < 120
  for i in range(2):
    assert "error: process 0 of the run: " in said_by(workdir, i)
    assert "config.json is damaged" in said_by(workdir, i)


def said_by(workdir, process):
  return peer_log(workdir, process).read_text()


def test_one_process_of_two_does_not_wait_for_ever(words, tmp_path):
  log = tmp_path / "log"
  process = start(
    *words,
    f"--workdir={tmp_path / 'run'}",
    f"--coordinator_address=localhost:{free_port()}",
    "--num_processes=2",
    "--process_id=1",
    "--start_timeout=2",
    log=log,
  )
  assert process.wait(SECONDS) == 2
  assert "waiting for 2 processes" in log.read_text()
  assert "not 2 processes of the run have joined" in log.read_text()
  assert not (tmp_path / "run").exists()
