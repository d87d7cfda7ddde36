"""Preemption: the first signal asks a run to save and end, the second ends it.

Slurm, Kubernetes and clouds send SIGTERM before they take a machine away; a
person presses Ctrl-C (SIGINT).
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Preemption:
  """Whether this process has been asked to end; see `listening`.

  Attributes:
    requested: whether one of NAMES was received.
    reason: its name, SIGTERM where another process received it.
  """

  def __init__(self):
    """No signal was received."""
    self.requested = False
    self.reason = NAMES[signal.SIGTERM]

  @contextlib.contextmanager
  def listening(self) -> Iterator["Preemption"]:
    """Inside, a signal sets `requested`; a second one ends the process.

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
    before = {
      number: signal.signal(number, lambda *_: None)
      for number in NAMES
      if signal.getsignal(number) is not signal.SIG_IGN  # under nohup and &
    }
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=self._listen, args=(reader,), daemon=True)
    thread.start()
    try:
      yield self
    finally:
      signal.set_wakeup_fd(wakeup)
      for number, handler in before.items():
        signal.signal(number, handler)
      os.close(writer)
      thread.join()
      os.close(reader)

  def _listen(self, reader):
    while byte := os.read(reader, 1):
      if byte[0] not in NAMES:
        continue
      name = NAMES[byte[0]]
      if self.requested:
        _print(f"{name} again: ending at once; the last checkpoint is complete")
        os._exit(128 + byte[0])
      self.reason, self.requested = name, True
      _print(
        f"{name}: saving at the end of this step; send it again to end at once"
      )


def _print(message):
  print(message, file=sys.stderr, flush=True)
