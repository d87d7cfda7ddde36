"""Runs commands side by side, each with a log; resumable, stoppable."""

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
STOP_SECONDS = 60.0  # for a run to save itself after SIGTERM
LOG_LINES = 10  # of a failed run, shown
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

  Their output goes to FOLDER/sweep.log. FOLDER/done.json says what was run,
  how it ended and how many seconds it took since it was last started; a folder
  in which the same commands ended with 0 is skipped.
  Left by an exception, Ctrl-C among them, it stops what it has started.

  Args:
    jobs: of each folder, the argv lists to run in order.
    num_workers: at least 1.
    environment: variables of the commands, over those of this process.
    cores: [num_workers], the CPU cores that each worker is kept to (Linux);
      default: all.
    out: where progress is printed; default: standard output.

  Returns:
    The folders of which a command failed.
  """
  waiting, active, failed, seconds = [], [], [], []
  free = list(range(num_workers))

  def say(text):
    print(text, file=out or sys.stdout, flush=True)

  for folder, commands in jobs.items():
    if _is_done(folder, commands):
      say(f"skip   {folder.name}: finished already")
    else:
      waiting.append((folder, commands))
  try:
    while waiting or active:
      while waiting and free:
        worker = free.pop(0)
        place = None if cores is None else cores[worker]
        active.append(_Active(*waiting.pop(0), worker, environment, place))
        say(f"start  {active[-1].folder.name}, {len(waiting)} waiting")
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
          say(f"done   {run.folder.name} in {run.seconds:.0f} s; {eta}")
        else:
          failed.append(run.folder)
          say(_failure(run.folder, status))
  finally:
    _stop(active)
  return failed


def _eta(
  seconds: Sequence[float],
  active: Sequence["_Active"],
  num_waiting: int,
  num_workers: int,
) -> str:
  """How many are left, and how long they take if they are like the others."""
  mean = sum(seconds) / len(seconds)
  left = sum(max(mean - run.seconds, 0) for run in active) + num_waiting * mean
  eta = datetime.timedelta(seconds=round(left / num_workers))
  return f"{num_waiting + len(active)} left, ETA {eta}"


class _Active:
  """A run whose commands are being executed, one after the other."""

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
    # A session of its own: what a run started is stopped together with it.
    with _kept_to(self._cores):
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
    """Since it was started."""
    return time.monotonic() - self._begin

  def poll(self) -> int | None:
    """None while it runs, then the first status that is not 0, or 0."""
    status = self._process.poll()
    if status == 0 and _was_stopped(self.folder):
      status = -signal.SIGTERM  # it saved itself, but it is not done
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
    """To the command and all that it has started."""
    if self._process.poll() is None:
      os.killpg(self._process.pid, number)

  def wait(self, seconds: float) -> None:
    """Until the command has ended, or so long."""
    try:
      self._process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
      self.signal(signal.SIGKILL)


def _was_stopped(folder: Path) -> bool:
  """Whether a run says that it ended because somebody asked it to."""
  path = folder / "events.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return bool(lines) and json.loads(lines[-1])["event"] == "stopped"


@contextlib.contextmanager
def _kept_to(cores: Collection[int] | None) -> Iterator[None]:
  """This thread, and what it starts inside, runs on these cores."""
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
  # Whichever interpreter it was, on whichever machine.
  before, now = (
    [list(command)[1:] for command in some]
    for some in (done["commands"], commands)
  )
  return before == now


def read_done(folder: Path) -> dict[str, Any] | None:
  """{commands, exit_status, seconds}, or None where nothing has ended."""
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
  finally:  # a second Ctrl-C: at once
    for run in active:
      run.signal(signal.SIGKILL)
