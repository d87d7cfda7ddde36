"""Sees a run that stands still, and says where every thread of it stands."""

import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from etils import epath


class Watchdog:
  """A thread that waits for signs of progress; use as a context manager."""

  def __init__(
    self,
    path: str,
    seconds: float,
    *,
    end: Callable[[str], object] | None = None,
  ):
    """Nothing is watched before the `with` block.

    Args:
      path: of the text file that is written when the run stands still.
      seconds: without progress, after which it is written; after twice as many
        `end` is called. 0: nothing is watched.
      end: ends the process; called with the words to say. Default: prints them
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
    """`what` has been done just now."""
    self._last, self._when = what, time.monotonic()

  def _watch(self):
    written = None  # the progress that the file is about
    while not self._done.wait(min(self._seconds / 5, 10.0)):
      last, when = self._last, self._when
      still = time.monotonic() - when
      if still > 2 * self._seconds:
        self._end(
          f"the run has stood still for {still:.0f} s, twice"
          f" config.stall_seconds; the last thing done was {last}; {self._path}"
          " says where each thread stands"
        )
        return
      if still > self._seconds and written != when:
        written = when
        words = f"nothing was done for {still:.0f} s; the last was {last}"
        stacks = all_stacks()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(f"{words}\n\n{stacks}")
        print(
          f"warning: {words}; {self._path} says where each thread stands",
          file=sys.stderr,
          flush=True,
        )


def all_stacks() -> str:
  """Where every thread of this process stands, in Python."""
  with tempfile.TemporaryFile("w+") as file:
    faulthandler.dump_traceback(file, all_threads=True)
    file.seek(0)
    return file.read()


def _exit(words):
  print(f"error: {words}", file=sys.stderr, flush=True)
  os._exit(1)
