"""Detects a stalled run, and writes the stack of each of its threads."""

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from etils import epath

from calince_jax.errors import UserError
from calince_jax.files import write_atomic


class Watchdog:
  """A thread that watches for progress; use it as a context manager."""

  def __init__(
    self,
    path: str,
    seconds: float,
    *,
    end: Callable[[str], object] | None = None,
  ):
    """Nothing is watched before the `with` block.

    Args:
      path: text file that is written when the run is stalled.
      seconds: time without progress after which it is written; after twice
        that time `end` is called. 0: nothing is watched.
      end: called with a message, ends the process. Default: prints the message
        to standard error and exits with status 1.
    """
    self._path, self._seconds = epath.Path(path), seconds
    self._end = _exit if end is None else end
    self._done = threading.Event()
    self._last, self._when = "the start", time.monotonic()

  def __enter__(self) -> "Watchdog":
    if self._seconds:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._done.set()

  def progress(self, what: str) -> None:
    """Records that `what` was done just now."""
    self._last, self._when = what, time.monotonic()

  def _watch(self):
    written = None  # time of the progress that the file reports on
    while not self._done.wait(min(self._seconds / 5, 10.0)):
      last, when = self._last, self._when
      stalled = time.monotonic() - when
      if stalled > 2 * self._seconds:
        self._end(
          f"the run has made no progress for {stalled:.0f} s, twice"
          f" config.stall_seconds; the last progress was {last}; {self._path}"
          " has the stack of each thread"
        )
        return
      if stalled > self._seconds and written != when:
        written = when
        message = (
          f"no progress for {stalled:.0f} s; the last progress was {last}"
        )
        stacks = all_stacks()
        # The watch must go on, also where nothing can be written.
        with contextlib.suppress(OSError, UserError):
          self._path.parent.mkdir(parents=True, exist_ok=True)
          write_atomic(self._path, f"{message}\n\n{stacks}")
        print(
          f"warning: {message}; {self._path} has the stack of each thread",
          file=sys.stderr,
          flush=True,
        )


def all_stacks() -> str:
  """The Python stack of every thread of this process."""
  with tempfile.TemporaryFile("w+") as file:
    faulthandler.dump_traceback(file, all_threads=True)
    file.seek(0)
    return file.read()


def _exit(message):
  print(f"error: {message}", file=sys.stderr, flush=True)
  os._exit(1)
