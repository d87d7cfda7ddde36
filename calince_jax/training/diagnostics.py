"""What deserves a word while a run trains: bad numbers, spikes, collapse."""

import collections
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

TERMS = ("correspondence", "contrastive", "predictive", "loss", "grad_norm")
NAMED_PAIRS = 8


def bad_numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """What is not finite in a step that was skipped.

  Args:
    metrics: of the train step, on the host, `pairs` among them.

  Returns:
    `terms`, the names of the losses that are not finite, or of the gradient
    where they all are; `pairs`, the pair indices of which the model itself said
    something that is not finite, sorted; none where no single pair is to blame.
  """
  terms = [
    name for name in TERMS if name in metrics and not np.isfinite(metrics[name])
  ]
  finite = np.asarray(metrics["pairs"]["finite"])
  pairs = np.asarray(metrics["pairs"]["pair_index"])[~finite]
  return {
    "terms": [t for t in terms if t in TERMS[:3]] or terms[:1],
    "pairs": sorted({int(pair) for pair in pairs}),
    "batch_size": len(finite),
  }


def bad_numbers_in_words(found: Mapping[str, Any]) -> str:
  """One line on what `bad_numbers` found."""
  terms = ", ".join(found["terms"]).replace("grad_norm", "the gradient")
  pairs = found["pairs"]
  if not pairs:
    who = "of no single pair"
  elif len(pairs) == found["batch_size"]:
    who = "of every pair"
  else:
    who = f"of pairs {', '.join(map(str, pairs[:NAMED_PAIRS]))}"
    if len(pairs) > NAMED_PAIRS:
      who += f" and {len(pairs) - NAMED_PAIRS} more"
  return f"{terms} not finite, {who}"


class SpikeWatch:
  """Compares each loss with those of the steps before it."""

  def __init__(self, deviations: float, window: int = 64):
    """Nothing is seen yet; the first `window` losses are never spikes.

    Args:
      deviations: how many robust standard deviations (1.4826 times the median
        absolute deviation) above the median a spike is; 0: none is.
      window: steps that are looked back on.
    """
    self._deviations = deviations
    self._recent = collections.deque(maxlen=window)

  def above(self, loss: float) -> float | None:
    """The median before, if `loss` is a spike; None if it is not."""
    recent = self._recent
    median = None
    if self._deviations and len(recent) == recent.maxlen and np.isfinite(loss):
      middle = statistics.median(recent)
      spread = 1.4826 * statistics.median(abs(x - middle) for x in recent)
      # Of a loss that hardly moves any more, rounding is no spike.
      if loss - middle > self._deviations * max(spread, 1e-3 * abs(middle)):
        median = middle
    if np.isfinite(loss):
      recent.append(loss)
    return median
