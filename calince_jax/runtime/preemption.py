"""Preemption: the first SIGTERM asks a run to save and end, the second ends it.

Slurm, Kubernetes and clouds send SIGTERM before they take a machine away.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator


class Preemption:
  """Whether this process has received SIGTERM; see `listening`.

  Attributes:
    requested: whether SIGTERM was received.
  """

  def __init__(self):
    """No signal was received."""
    self.requested = False

  @contextlib.contextmanager
  def listening(self) -> Iterator["Preemption"]:
    """Inside, SIGTERM sets `requested`; a second SIGTERM ends the process.

    Enter it after the processes have joined, because JAX then installs a
    handler of its own. Outside the main thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
      yield self
      return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python runs a handler only when the main thread returns from C++, which
    # may take minutes; the byte is written at once.
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
        _print("SIGTERM again: ending at once; the last checkpoint is complete")
        os._exit(128 + signal.SIGTERM)
      self.requested = True
      _print(
        "SIGTERM: saving at the end of this step; send it again to end at once"
      )


def _print(message):
  print(message, file=sys.stderr, flush=True)
