"""A trace of some steps of a run, to be read with xprof."""

import re
from typing import Any

import jax

from calince_jax.errors import UserError
from calince_jax.training.metric_logger import MetricLogger


def parse(text: str, total_steps: int) -> range:
  """The steps that `--profile_steps=FIRST:LAST` names, both included.

  Raises:
    UserError: it is written in another way, or they are not steps of the run.
  """
  match = re.fullmatch(r"(\d+):(\d+)", text)
  if not match:
    raise UserError(f"--profile_steps={text} must be FIRST:LAST, such as 10:15")
  first, last = map(int, match.groups())
  if not 1 <= first <= last <= total_steps:
    raise UserError(
      f"--profile_steps={text}: FIRST must be at least 1, LAST at least FIRST,"
      f" and at most config.total_steps={total_steps}"
    )
  return range(first, last + 1)


class StepProfile:
  """Traces steps of this start; the first step after a resume is step 1.

  Process 0 alone does it: the trace has the devices of its host, whose steps
  wait for those of the others, and one file is enough to read.
  """

  def __init__(
    self,
    steps: range,
    workdir: str,
    *,
    first_step: int,
    total_steps: int,
    logger: MetricLogger,
  ):
    """`steps`: counted from `first_step`, the steps that were done before."""
    self._first, self._last = first_step + steps[0], first_step + steps[-1]
    self._workdir, self._logger = workdir, logger
    self._running = False
    if self._last > total_steps:
      self._first = self._last = -1
      print(
        f"note: --profile_steps={steps[0]}:{steps[-1]} is left out, since only"
        f" {total_steps - first_step} steps of the run are left",
        flush=True,
      )

  def before(self, step: int, state: Any) -> None:
    """Starts the trace if `step` is the first, after the step before it."""
    if step == self._first:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._workdir)
      self._running = True

  def after(self, step: int, state: Any) -> None:
    """Ends the trace if `step` was the last."""
    if step == self._last:
      jax.block_until_ready(state)
      self._stop(step)

  def close(self, step: int) -> None:
    """Ends a trace that runs still, since the run ends early."""
    if self._running:
      self._stop(step)

  def _stop(self, step):
    jax.profiler.stop_trace()
    self._running = False
    self._logger.event(step, "profiled", first=self._first, last=step)
    print(
      f"profiled steps {self._first} to {step}: look at them with"
      f" xprof --logdir={self._workdir}   (pip install xprof)",
      flush=True,
    )
