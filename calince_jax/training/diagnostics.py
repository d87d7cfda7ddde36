"""Diagnostics of steps: numbers that are not finite, spikes, no learning."""

import collections
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

TERMS = ("correspondence", "contrastive", "predictive", "loss", "grad_norm")
MAX_LISTED_PAIRS = 8


def non_finite(
  metrics: Mapping[str, Any], pairs: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """What is not finite in a step that was skipped.

  Args:
    metrics: of the train step, on the host.
    pairs: `pair_index` and `finite` of the global batch, [B].

  Returns:
    `terms`, the names of the losses that are not finite, or of the gradient
    where all losses are finite; `pairs`, sorted pair indices for which an
    output of the model is not finite, empty where none is; `batch_size`.
  """
  terms = [
    name for name in TERMS if name in metrics and not np.isfinite(metrics[name])
  ]
  finite = np.asarray(pairs["finite"])
  indices = np.asarray(pairs["pair_index"])[~finite]
  return {
    "terms": [t for t in terms if t in TERMS[:3]] or terms[:1],
    "pairs": sorted({int(index) for index in indices}),
    "batch_size": len(finite),
  }


def describe(report: Mapping[str, Any]) -> str:
  """One line on what `non_finite` returned."""
  terms = ", ".join(report["terms"]).replace("grad_norm", "the gradient")
  pairs = report["pairs"]
  if not pairs:
    who = "of no single pair"
  elif len(pairs) == report["batch_size"]:
    who = "of every pair"
  else:
    who = f"of pairs {', '.join(map(str, pairs[:MAX_LISTED_PAIRS]))}"
    if len(pairs) > MAX_LISTED_PAIRS:
      who += f" and {len(pairs) - MAX_LISTED_PAIRS} more"
  return f"{terms} not finite, {who}"


class SpikeDetector:
  """Compares the loss of each step with the losses of the steps before."""

  def __init__(self, deviations: float, window: int = 64):
    """The first `window` losses are never spikes.

    Args:
      deviations: a loss so many robust standard deviations (1.4826 times the
        median absolute deviation) above the median is a spike; 0: none is.
      window: number of steps whose losses a loss is compared with.
    """
    self._deviations = deviations
    self._recent = collections.deque(maxlen=window)

  def median_before_spike(self, loss: float) -> float | None:
    """The median of the losses before if `loss` is a spike, else None."""
    recent = self._recent
    median = None
    if self._deviations and len(recent) == recent.maxlen and np.isfinite(loss):
      middle = statistics.median(recent)
      spread = 1.4826 * statistics.median(abs(x - middle) for x in recent)
      # Where the loss hardly changes any more, rounding is no spike.
      if loss - middle > self._deviations * max(spread, 1e-3 * abs(middle)):
        median = middle
    if np.isfinite(loss):
      recent.append(loss)
    return median


class TakeOff:
  """Tells from the in-batch accuracy when a run begins to learn.

  It has taken off at the first step at which the mean of the last WINDOW
  accuracies is at least TIMES the chance 1 / N (of small batches: half way from
  chance to 1).
  """

  WINDOW, TIMES = 10, 5

  def __init__(self, batch_size: int):
    """`batch_size`: N."""
    self.chance = 1 / batch_size
    self._least = min(self.TIMES * self.chance, (1 + self.chance) / 2)
    self._recent = collections.deque(maxlen=self.WINDOW)
    self._was_below = self.taken_off = False

  @property
  def accuracy(self) -> float:
    """The mean of the last WINDOW steps, or of as many as there were."""
    return statistics.fmean(self._recent)

  def update(self, accuracy: float) -> bool:
    """Counts a step; returns whether it is the one of the take-off.

    A run that is resumed after it has no such step.
    """
    self._recent.append(accuracy if np.isfinite(accuracy) else self.chance)
    if self.taken_off or len(self._recent) < self.WINDOW:
      return False
    self.taken_off = self.accuracy >= self._least
    self._was_below |= not self.taken_off
    return self.taken_off and self._was_below
