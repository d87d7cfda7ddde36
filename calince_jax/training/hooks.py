"""Hooks: what the training loop does with the result of each step.

A hook is called once for every step, in the order of the steps, and returns
whether the run has to end. `loop.open_hooks` lists them in the order in which
they are called. Process 0 alone logs and warns.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from calince_jax.data.input.corrupt_records import CorruptRecordLog
from calince_jax.errors import UserError
from calince_jax.runtime import checkpoint
from calince_jax.training import diagnostics
from calince_jax.training.metric_logger import MetricLogger
from calince_jax.training.pair_stats import PairStatistics


@dataclasses.dataclass(frozen=True)
class StepResult:
  """One step as the hooks see it; all but `state` is on the host.

  Attributes:
    step: number of the step; the first step of a run is 1.
    metrics: scalars and histograms of the train step.
    pairs: what the train step returns of each pair of the global batch, [B].
    preempted: whether a process of the run was asked to end.
    evaluation: metrics of the in-training evaluation after this step; {} where
      there was none.
    logged: whether this step gets a row in metrics.jsonl.
    state: the training state after this step, or after a later one.
  """

  step: int
  metrics: Mapping[str, Any]
  pairs: Mapping[str, np.ndarray]
  preempted: bool
  evaluation: Mapping[str, float]
  logged: bool
  state: Any


Hook = Callable[[StepResult], bool]


def end_if_preempted(result: StepResult) -> bool:
  """Ends the run when a process of it was asked to end."""
  return result.preempted


class SkippedSteps:
  """Reports non-finite steps, and ends the run after too many in a row."""

  def __init__(
    self,
    config: dict[str, Any],
    checkpoints: Any,
    logger: MetricLogger | None,
    pair_statistics: "CollectPairs",
  ):
    """Takes what is needed to save a last checkpoint."""
    self._config, self._checkpoints = config, checkpoints
    self._logger, self._pair_statistics = logger, pair_statistics

  def __call__(self, result: StepResult) -> bool:
    """Raises UserError after `max_bad_steps` skipped steps in a row."""
    if not result.metrics["skipped"]:
      return False
    bad_steps = int(result.metrics["bad_steps"])
    if self._logger:
      self._report(result, bad_steps)
    if bad_steps >= self._config["max_bad_steps"]:
      self._save_and_raise(result.state, bad_steps)
    return False

  def _report(self, result, bad_steps):
    report = diagnostics.non_finite(result.metrics, result.pairs)
    self._logger.event(
      result.step,
      "skipped",
      f"step {result.step} was skipped: {diagnostics.describe(report)}"
      f" ({bad_steps} in a row, {int(result.metrics['skipped_steps'])} in all)",
      **report,
    )

  def _save_and_raise(self, state, bad_steps):
    last = int(state.step)
    statistics = self._pair_statistics.collected()
    checkpoint.save(self._checkpoints, last, state, self._config, statistics)
    checkpoint.wait(self._checkpoints)
    raise UserError(
      f"{bad_steps} steps in a row had a loss or gradient that is not finite;"
      f" the last good parameters are saved as step {last}; train in another"
      " --workdir with a lower config.optimizer.learning_rate"
    )


class LossSpikes:
  """Warns when the loss of a step is far above the losses before it."""

  def __init__(self, deviations: float, logger: MetricLogger):
    """`deviations`: see diagnostics.SpikeDetector."""
    self._detector = diagnostics.SpikeDetector(deviations)
    self._logger = logger

  def __call__(self, result: StepResult) -> bool:
    """Warns."""
    loss = float(result.metrics["loss"])
    median = self._detector.median_before_spike(loss)
    if median is not None:
      self._logger.event(
        result.step,
        "loss_spike",
        f"the loss of step {result.step} is {loss:.3f}, far above"
        f" {median:.3f}, the median of the steps before",
        loss=loss,
        median=median,
      )
    return False


class NoLearning:
  """Says when a run takes off, and warns for as long as it does not."""

  ADVICE = (
    "look at video_collapse and text_collapse in metrics.jsonl (near 1: all"
    " embeddings are one point); set config.model.centre and"
    " config.model.video.pixels=centred where they are not, lower"
    " config.optimizer.learning_rate, or give a larger batch"
  )

  def __init__(self, first_alarm: int, batch_size: int, logger: MetricLogger):
    """Warns after `first_alarm` steps, and again when they have doubled."""
    self._detector = diagnostics.TakeOff(batch_size)
    self._alarm = first_alarm
    self._logger = logger

  def __call__(self, result: StepResult) -> bool:
    """Says it."""
    step, metrics = result.step, result.metrics
    found = self._detector
    if found.update(float(metrics["in_batch_accuracy"])):
      self._logger.event(
        step,
        "took_off",
        f"learning has begun at step {step}: the in-batch accuracy is"
        f" {found.accuracy:.3f}, {found.accuracy / found.chance:.0f} times"
        " chance",
        warning=False,
        accuracy=found.accuracy,
      )
    while self._alarm <= step:
      if step == self._alarm and not found.taken_off:
        self._logger.event(
          step,
          "no_learning",
          f"the contrastive loss is still {metrics['contrastive']:.2f} (ln N ="
          f" {metrics['ln_N']:.2f}) after {step} steps, and the in-batch"
          f" accuracy {found.accuracy:.3f} (chance {found.chance:.3f}): nothing"
          f" has been learned; {self.ADVICE}",
          accuracy=found.accuracy,
        )
      self._alarm *= 2
    return False


class CalibrationBegins:
  """Says when weights first follow scores, and at the end if never."""

  def __init__(self, total_steps: int, logger: MetricLogger):
    """`total_steps`: of the run."""
    self._total_steps, self._logger = total_steps, logger
    self._waiting = self._begun = False

  def __call__(self, result: StepResult) -> bool:
    """Says it, where weights are earned: the metric `trust` is there."""
    if "trust" not in result.metrics:
      return False
    step, trust = result.step, float(result.metrics["trust"])
    if trust > 0 and self._waiting and not self._begun:
      self._logger.event(
        step,
        "calibration_began",
        f"calibration began at step {step}: given pairs can be told from"
        " negatives",
        warning=False,
      )
    self._begun |= trust > 0
    self._waiting |= trust <= 0
    if step == self._total_steps and trust <= 0:
      self._logger.event(
        step,
        "not_identified",
        "not identified: given pairs cannot be told from negatives, so all"
        " weights are 1 and this run is plain co-training (with"
        " confidence=given: weights are the table's, and nothing moved them)",
      )
    return False


class CollectPairs:
  """Collects the pairs of each step, and sums them up at an evaluation.

  Attributes:
    summary: metrics of the pairs collected before the evaluation of the last
      step; {} where that step had none.
  """

  def __init__(self, saved: Mapping[str, np.ndarray]):
    """`saved`: what `collected` returned when the run was saved, or {}."""
    self._pairs = PairStatistics()
    if saved:
      self._pairs.add(saved)
    self.summary: dict[str, float] = {}

  def __call__(self, result: StepResult) -> bool:
    """Collects the pairs of this step."""
    self._pairs.add(result.pairs)
    self.summary = self._pairs.summary() if result.evaluation else {}
    return False

  def collected(self) -> dict[str, np.ndarray]:
    """The pairs collected since the last summary, for a checkpoint."""
    return self._pairs.arrays()


class MetricRow:
  """Writes the row of a logged step in metrics.jsonl."""

  def __init__(
    self,
    logger: MetricLogger,
    schedule: Callable[[int], Any],
    corrupt_records: CorruptRecordLog,
    pair_statistics: CollectPairs,
  ):
    """Takes what a row holds besides the metrics of the train step."""
    self._logger, self._schedule = logger, schedule
    self._corrupt_records = corrupt_records
    self._pair_statistics = pair_statistics

  def __call__(self, result: StepResult) -> bool:
    """Writes the row."""
    if result.logged:
      self._logger.log(
        result.step,
        {
          **result.metrics,
          "learning_rate": self._schedule(result.step - 1),
          **self._corrupt_records.counts(),
          **result.evaluation,
          **self._pair_statistics.summary,
        },
      )
    return False


class CollapsedWeights:
  """Warns when few pairs of a logged step hold nearly all of the weight."""

  def __init__(self, config: Mapping[str, Any], logger: MetricLogger):
    """The lowest share of effective pairs is in `config["alarms"]`."""
    self._batch_size = config["batch_size"]
    self._lowest_share = config["alarms"]["effective_sample_share"]
    self._logger, self._collapsed = logger, False

  def __call__(self, result: StepResult) -> bool:
    """Warns once each time that the share falls below the lowest."""
    if not result.logged:
      return False
    effective = float(result.metrics["effective_sample_size"])
    share = effective / self._batch_size
    if share < self._lowest_share and not self._collapsed:
      self._logger.event(
        result.step,
        "confidences_collapsed",
        "the confidences have collapsed: the weights of step"
        f" {result.step} are worth {effective:.1f} pairs of"
        f" {self._batch_size}; look at noise_rate and confidence_histogram in"
        " metrics.jsonl, and raise config.objective.floor or lower"
        " config.objective.power",
        effective_sample_share=share,
      )
    self._collapsed = share < self._lowest_share
    return False


class EvaluationLine:
  """Prints a line on each in-training evaluation."""

  def __init__(
    self,
    logger: MetricLogger,
    chance: Callable[[], Mapping[str, float]],
    pair_statistics: CollectPairs,
  ):
    """`chance`: returns the metrics that random embeddings would get."""
    self._logger, self._chance = logger, chance
    self._pair_statistics = pair_statistics

  def __call__(self, result: StepResult) -> bool:
    """Prints the line."""
    if result.evaluation:
      metrics = {**result.evaluation, **self._pair_statistics.summary}
      self._logger.evaluated(result.step, metrics, self._chance())
    return False
