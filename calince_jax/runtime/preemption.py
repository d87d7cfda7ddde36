"""SIGTERM: the first asks the run to save itself and end, the second ends it.

Machines that are taken away, Slurm and Kubernetes announce it so.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator


class StopSignal:
  """Whether SIGTERM has come; see `listening`.

  Attributes:
    requested: read it as often as you like.
  """

  def __init__(self):
    """Nothing has come."""
    self.requested = False

  @contextlib.contextmanager
  def listening(self) -> Iterator["StopSignal"]:
    """Inside, SIGTERM sets `requested`; a second one ends the process at once.

    Enter it after the start of a cluster: JAX has a handler of its own. In
    another thread than the main one it cannot listen and does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
      yield self
      return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python runs a handler when the main thread next comes back from C++, in
    # minutes or never; the byte is written at once.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=self._listen, args=(reader,), daemon=True)
    thread.start()
    try:
      yield self
    finally:
      signal.set_wakeup_fd(wakeup)
      signal.signal(signal.SIGTERM, before)
      os.close(writer)
      thread.join()
      os.close(reader)

  def _listen(self, reader):
    while byte := os.read(reader, 1):
      if byte[0] != signal.SIGTERM:
        continue
      if self.requested:
        _say("SIGTERM again: ending at once; the last checkpoint is whole")
        os._exit(128 + signal.SIGTERM)
      self.requested = True
      _say("SIGTERM: saving at the end of this step; again: end at once")


def _say(words):
  print(words, file=sys.stderr, flush=True)
