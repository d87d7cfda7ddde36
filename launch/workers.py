"""Runs commands in parallel, each with a log; can be stopped and resumed."""

import contextlib
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

POLL_SECONDS = 0.05
STOP_SECONDS = 60.0  # what a run gets to save a checkpoint after SIGTERM
LOG_LINES = 10  # shown of the log of a failed run
LOG, DONE = "sweep.log", "done.json"

Command = tuple[str, ...]


def run_all(
  jobs: Mapping[Path, Sequence[Command]],
  *,
  num_workers: int,
  environment: Mapping[str, str] | None = None,
  cores: Sequence[Collection[int]] | None = None,
  out: TextIO | None = None,
) -> list[Path]:
  """Runs the commands of each folder, `num_workers` folders at a time.

  Their output is appended to FOLDER/sweep.log. FOLDER/done.json then holds the
  commands, their exit status, and the seconds since they were last started. A
  folder where the same commands ended with status 0 is skipped.
  On any exception, including Ctrl-C, all processes that were started are
  stopped.

  Args:
    jobs: for each folder the commands to run in order, as argv lists.
    num_workers: at least 1.
    environment: variables for the commands, added to those of this process.
    cores: [num_workers], the CPU cores that each worker may use (Linux only);
      default: all.
    out: where progress is printed; default: standard output.

  Returns:
    The folders in which a command failed.
  """
  waiting, active, failed, seconds = [], [], [], []
  free = list(range(num_workers))

  def report(text):
    print(text, file=out or sys.stdout, flush=True)

  for folder, commands in jobs.items():
    if _is_done(folder, commands):
      report(f"skip   {folder.name}: finished already")
    else:
      waiting.append((folder, commands))
  try:
    while waiting or active:
      while waiting and free:
        worker = free.pop(0)
        allowed = None if cores is None else cores[worker]
        active.append(_Active(*waiting.pop(0), worker, environment, allowed))
        report(f"start  {active[-1].folder.name}, {len(waiting)} waiting")
      time.sleep(POLL_SECONDS)
      for run in list(active):
        status = run.poll()
        if status is None:
          continue
        active.remove(run)
        free.append(run.worker)
        if status == 0:
          seconds.append(run.seconds)
          eta = _eta(seconds, active, len(waiting), num_workers)
          report(f"done   {run.folder.name} in {run.seconds:.0f} s; {eta}")
        else:
          failed.append(run.folder)
          report(_failure(run.folder, status))
  finally:
    _stop(active)
  return failed


def _eta(
  seconds: Sequence[float],
  active: Sequence["_Active"],
  num_waiting: int,
  num_workers: int,
) -> str:
  """How many runs are left, and the time for them at the mean of the others."""
  mean = sum(seconds) / len(seconds)
  left = sum(max(mean - run.seconds, 0) for run in active) + num_waiting * mean
  eta = datetime.timedelta(seconds=round(left / num_workers))
  return f"{num_waiting + len(active)} left, ETA {eta}"


class _Active:
  """A run whose commands are being executed, one after another."""

  def __init__(
    self,
    folder: Path,
    commands: Sequence[Command],
    worker: int,
    environment: Mapping[str, str] | None,
    cores: Collection[int] | None,
  ):
    folder.mkdir(parents=True, exist_ok=True)
    self.folder, self.commands, self.worker = folder, commands, worker
    self._environment, self._cores = os.environ | (environment or {}), cores
    self._begin = time.monotonic()
    (folder / DONE).unlink(missing_ok=True)
    self._log = (folder / LOG).open("a")
    self._left = list(commands)
    self._next()

  def _next(self) -> None:
    command = self._left.pop(0)
    print(f"+ {shlex.join(command)}", file=self._log, flush=True)
    # A new session, so that signals reach all processes of the run.
    with _cpu_affinity(self._cores):
      self._process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=self._log,
        stderr=subprocess.STDOUT,
        env=self._environment,
        start_new_session=True,
      )

  @property
  def seconds(self) -> float:
    """Seconds since the run was started."""
    return time.monotonic() - self._begin

  def poll(self) -> int | None:
    """None while it runs; then the first exit status that is not 0, or 0."""
    status = self._process.poll()
    if status == 0 and _was_stopped(self.folder):
      status = -signal.SIGTERM  # it was stopped before its last step
    if status == 0 and self._left:
      self._next()
      return None
    if status is not None:
      self._log.close()
      document = {
        "commands": self.commands,
        "exit_status": status,
        "seconds": round(self.seconds, 1),
      }
      unfinished = self.folder / (DONE + ".tmp")
      unfinished.write_text(json.dumps(document, indent=1) + "\n")
      unfinished.replace(self.folder / DONE)
    return status

  def signal(self, number: int) -> None:
    """Sends a signal to the command and all processes that it started."""
    if self._process.poll() is None:
      os.killpg(self._process.pid, number)

  def wait(self, seconds: float) -> None:
    """Waits for the command to end; kills it after `seconds`."""
    try:
      self._process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
      self.signal(signal.SIGKILL)


def _was_stopped(folder: Path) -> bool:
  """Whether the last event of a run is that it was stopped."""
  path = folder / "events.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return bool(lines) and json.loads(lines[-1])["event"] == "stopped"


@contextlib.contextmanager
def _cpu_affinity(cores: Collection[int] | None) -> Iterator[None]:
  """Inside, this thread and the processes that it starts use these cores."""
  if cores is None:
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def _is_done(folder: Path, commands: Sequence[Command]) -> bool:
  done = read_done(folder)
  if done is None or done["exit_status"] != 0:
    return False
  # Without argv[0]: another machine has another path of Python.
  before, now = (
    [list(command)[1:] for command in some]
    for some in (done["commands"], commands)
  )
  return before == now


def read_done(folder: Path) -> dict[str, Any] | None:
  """The contents of done.json: commands, exit_status, seconds; None without."""
  path = folder / DONE
  return json.loads(path.read_text()) if path.exists() else None


def _failure(folder: Path, status: int) -> str:
  log = folder / LOG
  lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
  tail = "".join(f"\n       | {line}" for line in lines)
  return f"FAILED {folder.name}: exit status {status}; the end of {log}:{tail}"


def _stop(active: Sequence[_Active]) -> None:
  try:
    for run in active:
      run.signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for run in active:
      run.wait(deadline - time.monotonic())
  finally:  # also after a second Ctrl-C, then at once
    for run in active:
      run.signal(signal.SIGKILL)
