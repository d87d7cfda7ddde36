"""Where the time of a run goes: steps, or what keeps the devices from them."""

import concurrent.futures
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

# What is not steps. start: everything before the loop, such as reading a
# checkpoint. data: the devices stand idle until a batch is there.
LOST_TO = ("start", "compile", "data", "checkpoint", "evaluation")


class WallTime:
  """Seconds since this start of a run, by what they were spent on."""

  def __init__(self):
    """Begins to count, as `start`."""
    self._begin = time.monotonic()
    self._seconds = dict.fromkeys(LOST_TO, 0.0)
    self._watcher = concurrent.futures.ThreadPoolExecutor(1, "device")
    self._idle_since: concurrent.futures.Future | None = None

  def started(self) -> None:
    """Ends `start`: the loop begins."""
    self._seconds["start"] = time.monotonic() - self._begin

  @contextlib.contextmanager
  def lost_to(self, what: str) -> Iterator[None]:
    """Counts the time inside as lost to `what`, one of LOST_TO."""
    begin = time.monotonic()
    try:
      yield
    finally:
      self._seconds[what] += time.monotonic() - begin

  def dispatched(self, result: Any) -> None:
    """`result`, an array, is what the devices are computing now."""
    self._idle_since = self._watcher.submit(_ready_at, result)

  @contextlib.contextmanager
  def waiting_for_data(self) -> Iterator[None]:
    """Counts the part of the time inside in which the devices are idle.

    While they compute the last step, a batch may take as long as that step.
    """
    begin = time.monotonic()
    yield
    now, idle = time.monotonic(), self._idle_since
    if idle is not None:
      begin = max(begin, idle.result()) if idle.done() else now
    self._seconds["data"] += max(now - begin, 0.0)

  def seconds(self, what: str) -> float:
    """Seconds lost to `what` until now."""
    return self._seconds[what]

  def shares(self) -> dict[str, float]:
    """`goodput`, the share of the time in steps, and `lost_to_*`; 1 in all."""
    elapsed = max(time.monotonic() - self._begin, 1e-9)
    lost = {f"lost_to_{k}": s / elapsed for k, s in self._seconds.items()}
    return {"goodput": 1.0 - sum(lost.values())} | lost


def _ready_at(result):
  jax.block_until_ready(result)
  return time.monotonic()
