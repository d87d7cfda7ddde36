"""Runs commands side by side, each with a log; resumable, stoppable."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
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
  out: TextIO | None = None,
) -> list[Path]:
  """Runs the commands of each folder, `num_workers` folders at a time.

  Their output goes to FOLDER/sweep.log. FOLDER/done.json says what was run and
  how it ended; a folder in which the same commands ended with 0 is skipped.
  Left by an exception, Ctrl-C among them, it stops what it has started.

  Args:
    jobs: of each folder, the argv lists to run in order.
    num_workers: at least 1.
    out: where progress is printed; default: standard output.

  Returns:
    The folders of which a command failed.
  """
  waiting, active, failed = [], [], []

  def say(text):
    print(text, file=out or sys.stdout, flush=True)

  for folder, commands in jobs.items():
    if _is_done(folder, commands):
      say(f"skip   {folder.name}: finished already")
    else:
      waiting.append((folder, commands))
  try:
    while waiting or active:
      while waiting and len(active) < num_workers:
        active.append(_Active(*waiting.pop(0)))
        say(f"start  {active[-1].folder.name}, {len(waiting)} waiting")
      time.sleep(POLL_SECONDS)
      for run in list(active):
        status = run.poll()
        if status is None:
          continue
        active.remove(run)
        if status == 0:
          seconds = time.monotonic() - run.begin
          say(f"done   {run.folder.name} in {seconds:.0f} s")
        else:
          failed.append(run.folder)
          say(_failure(run.folder, status))
  finally:
    _stop(active)
  return failed


class _Active:
  """A run whose commands are being executed, one after the other."""

  def __init__(self, folder: Path, commands: Sequence[Command]):
    folder.mkdir(parents=True, exist_ok=True)
    self.folder, self.commands = folder, commands
    self.begin = time.monotonic()
    (folder / DONE).unlink(missing_ok=True)
    self._log = (folder / LOG).open("a")
    self._left = list(commands)
    self._next()

  def _next(self) -> None:
    command = self._left.pop(0)
    print(f"+ {shlex.join(command)}", file=self._log, flush=True)
    # A session of its own: what a run started is stopped together with it.
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=self._log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )

  def poll(self) -> int | None:
    """None while it runs, then the first status that is not 0, or 0."""
    status = self._process.poll()
    if status == 0 and self._left:
      self._next()
      return None
    if status is not None:
      self._log.close()
      document = {"commands": self.commands, "exit_status": status}
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


def _is_done(folder: Path, commands: Sequence[Command]) -> bool:
  document = read_done(folder)
  wanted = [list(command) for command in commands]
  return document == {"commands": wanted, "exit_status": 0}


def read_done(folder: Path) -> dict[str, Any] | None:
  """{commands, exit_status} of a folder, or None where nothing has ended."""
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
