"""The loop over steps: train, watch, log, save, and end when asked to."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from calince_jax import config as config_lib
from calince_jax.data.input.corrupt_records import CorruptRecordLog
from calince_jax.errors import UserError
from calince_jax.runtime import checkpoint, distributed, sharding
from calince_jax.runtime.preemption import StopSignal
from calince_jax.runtime.watchdog import Watchdog
from calince_jax.training import diagnostics
from calince_jax.training.metric_logger import Monitor

COMPILED_WITHIN = 3600.0  # seconds that one process may compile longer


@dataclasses.dataclass
class Run:
  """What a run has besides its state.

  Attributes:
    batches: this process's rows of each batch, from the state's step on.
    damage: what was damaged in them.
    manager: of the checkpoints.
    monitor: of process 0; None in the others.
    retrieval: the RetrievalWatch, None where nothing is evaluated.
    visits: of the PairWatch when the state was saved.
    stop: whether this process is asked to end.
    dog: is told of each step.
  """

  config: dict[str, Any]
  mesh: Any
  training: config_lib.Training
  batches: Iterator[dict[str, np.ndarray]]
  damage: CorruptRecordLog
  manager: Any
  monitor: Monitor | None
  retrieval: Any
  visits: dict[str, np.ndarray]
  stop: StopSignal
  dog: Watchdog


def loop(run: Run, state: Any) -> Any:
  """Trains until `total_steps`, or until a process is asked to end.

  Step n's metrics are read after step n + 1 has been dispatched, so that the
  devices do not wait for the log; but before a checkpoint everything up to it
  is settled, so that what is logged after it is the same in a run that goes on
  there. All processes stop at the same step. The last state is saved.
  """
  config, total = run.config, run.config["total_steps"]
  settle = Settler(run)
  unsettled: list[tuple[int, dict[str, Any], dict[str, float]]] = []
  first_step, stopping, take_step = int(state.step), False, None
  step = first_step
  while step < total and not stopping:
    batch = next_batch(run)
    if take_step is None:
      take_step = compile_step(run, state, batch)
    step += 1
    state, metrics = take_step(state, batch)
    if step == first_step + 1 and run.monitor:
      jax.block_until_ready(metrics)
      run.monitor.first_step_done()
    found = {}
    if run.retrieval and (
      step % config["evaluate_every"] == 0 or step == total
    ):
      found = evaluate(run, state)
    unsettled.append((step, metrics, found))
    saves = step % config["checkpoint_every"] == 0 or step == total
    while len(unsettled) > (0 if saves or stopping else 1):
      stopping |= settle(*unsettled.pop(0), state)
      saves |= stopping
    if saves:
      checkpoint.save(run.manager, step, state, config, settle.visits())
    run.dog.progress(f"step {step}")
  return state


def next_batch(run: Run) -> dict[str, jax.Array]:
  """The next global batch, with the word of each process on ending."""
  with run.monitor.waiting() if run.monitor else contextlib.nullcontext():
    rows = next(run.batches)
    rows["stop"] = np.full(len(rows["pair_index"]), run.stop.requested)
    return sharding.to_global(rows, run.mesh)


def compile_step(run: Run, state: Any, batch: dict[str, jax.Array]) -> Callable:
  """The compiled step, once every process has it.

  A process that has it in its cache would else wait for the others inside the
  step, where a CPU cluster gives up after half a minute.
  """
  compiled = run.training.step.lower(state, batch).compile()
  run.dog.progress("compiling the step")
  distributed.barrier("compiled", COMPILED_WITHIN)
  return compiled


class Settler:
  """Reads the metrics of steps, in order: logs, warns, and ends bad runs."""

  def __init__(self, run: Run):
    """Nothing is read yet."""
    self._run = run
    self._spikes = diagnostics.SpikeWatch(run.config["alarms"]["loss_spike"])
    self._collapsed = False
    self._pairs = open_pairs(run)

  def visits(self) -> dict[str, np.ndarray]:
    """Those of the PairWatch, for a checkpoint."""
    return self._pairs.visits() if self._pairs else {}

  def __call__(
    self,
    step: int,
    metrics: dict[str, Any],
    found: dict[str, float],
    state: Any,
  ) -> bool:
    """Takes what step `step` gave; returns whether the run is to end.

    Args:
      step: the next after the last that was given.
      metrics: of the train step.
      found: by the RetrievalWatch after it.
      state: a later one, or that step's.
    """
    config, monitor = self._run.config, self._run.monitor
    pairs, stop = metrics.pop("pairs"), bool(metrics.pop("stop"))
    if metrics["skipped"]:
      self._skipped(step, jax.device_get(metrics | {"pairs": pairs}), state)
    if monitor:
      self._watch_loss(step, float(metrics["loss"]))
    if self._pairs:
      self._pairs.add(jax.device_get(pairs))
    if found:
      found |= self._pairs.summary()
    total = config["total_steps"]
    if monitor and (step % config["log_every"] == 0 or step == total):
      row = jax.device_get(metrics)
      row["learning_rate"] = self._run.training.schedule(step - 1)
      row |= self._run.damage.counts()
      monitor.log(step, row | found)
      self._watch_weights(step, float(row["effective_sample_size"]))
      if found:
        monitor.evaluated(step, found, self._run.retrieval.chance())
    return stop

  def _skipped(self, step, metrics, state):
    """Says what was not finite; ends the run after too many in a row."""
    config, run = self._run.config, self._run
    found = diagnostics.bad_numbers(metrics)
    bad = int(metrics["bad_steps"])
    if run.monitor:
      run.monitor.note(
        step,
        "skipped",
        f"step {step} was skipped: {diagnostics.bad_numbers_in_words(found)}"
        f" ({bad} in a row, {int(metrics['skipped_steps'])} in all)",
        **found,
      )
    if bad >= config["max_bad_steps"]:
      last = int(state.step)
      checkpoint.save(run.manager, last, state, config, self.visits())
      checkpoint.wait(run.manager)
      raise UserError(
        f"{bad} steps in a row had a loss or gradient that is not finite; the"
        f" last good parameters are saved as step {last}; train in another"
        " --workdir with a lower config.optimizer.learning_rate"
      )

  def _watch_loss(self, step, loss):
    before = self._spikes.above(loss)
    if before is not None:
      self._run.monitor.note(
        step,
        "loss_spike",
        f"the loss of step {step} is {loss:.3f}, far above {before:.3f}, the"
        " median of the steps before",
        loss=loss,
        median=before,
      )

  def _watch_weights(self, step, effective):
    share = effective / self._run.config["batch_size"]
    floor = self._run.config["alarms"]["effective_sample_share"]
    if share < floor and not self._collapsed:
      self._run.monitor.note(
        step,
        "confidences_collapsed",
        f"the confidences have collapsed: the weights of step {step} are worth"
        f" {effective:.1f} pairs of {self._run.config['batch_size']}; look at"
        " noise_rate and confidence_histogram in metrics.jsonl, and raise"
        " config.objective.floor or lower config.objective.power",
        effective_sample_share=share,
      )
    self._collapsed = share < floor


def open_pairs(run: Run) -> Any:
  """The PairWatch of the run, None where nothing is evaluated."""
  if run.retrieval is None:
    return None
  from calince_jax.training.retrieval_eval import PairWatch

  pairs = PairWatch()
  if run.visits:
    pairs.add(run.visits)
  return pairs


def evaluate(run: Run, state: Any) -> dict[str, float]:
  """What the RetrievalWatch says now; its time is not that of training."""
  jax.block_until_ready(state.step)
  run.dog.progress("training, before an evaluation")
  with run.monitor.paused() if run.monitor else contextlib.nullcontext():
    return run.retrieval.metrics(state.ema_params)
