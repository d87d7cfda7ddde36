"""Does the confidence mean what it says? Scores against a known mismatch."""

import numpy as np
from sklearn import metrics as sklearn_metrics

from calince_jax.errors import UserError

RELIABILITY_BINS = 15
HISTOGRAM_BINS = 20
UNKNOWN = -1


def calibration_report(
  confidence: np.ndarray, score: np.ndarray, matched: np.ndarray
) -> dict:
  """What the report shows of a data set's pairs.

  Args:
    confidence: float [N] in [0, 1], the probability that the pair is matched
      as the model sees it.
    score: float [N], any monotone score of the pair, higher is better.
    matched: int8 [N]: 1 the text belongs to the video, 0 it does not, -1 it is
      not known.

  Returns:
    {"metrics": mean_confidence and, of the pairs whose truth is known, auc (of
    the score), ece (of the confidence), mean_confidence_matched,
    mean_confidence_mismatched, noise_rate_true; what cannot be computed is
    absent,
    "chance": {"auc": 0.5} if there is an auc,
    "histogram": {"edges" [21], "matched", "mismatched", "unknown": counts
    [20]} of the confidence,
    "reliability": see `reliability`}.

  Raises:
    UserError: lengths differ, no pair, a value that is not finite or not in
      range.
  """
  confidence = np.asarray(confidence, np.float64)
  score, matched = np.asarray(score, np.float64), np.asarray(matched)
  _check(confidence, score, matched)
  known = matched != UNKNOWN
  truth = matched[known] == 1
  metrics = {"mean_confidence": float(confidence.mean())}
  for name, chosen in (("matched", matched == 1), ("mismatched", matched == 0)):
    if chosen.any():
      metrics[f"mean_confidence_{name}"] = float(confidence[chosen].mean())
  rows = []
  if known.any():
    rows = reliability(confidence[known], truth)
    metrics["ece"] = expected_calibration_error(rows)
    metrics["noise_rate_true"] = float(1 - truth.mean())
  if truth.any() and not truth.all():
    metrics["auc"] = float(sklearn_metrics.roc_auc_score(truth, score[known]))
  edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
  return {
    "metrics": metrics,
    "chance": {"auc": 0.5} if "auc" in metrics else {},
    "histogram": {"edges": edges.tolist()}
    | {
      name: np.histogram(confidence[matched == value], edges)[0].tolist()
      for name, value in (("matched", 1), ("mismatched", 0), ("unknown", -1))
    },
    "reliability": rows,
  }


def reliability(
  confidence: np.ndarray, matched: np.ndarray, bins: int = RELIABILITY_BINS
) -> list[dict]:
  """One row per non-empty bin of equal width, in rising order.

  Args:
    confidence: float [N] in [0, 1]; a bin holds its lower edge, and the last
      bin 1 as well.
    matched: bool [N].

  Returns:
    [{"confidence": the bin's mean, "frequency": its share of matched pairs,
    "count": pairs}].
  """
  which = np.minimum((confidence * bins).astype(int), bins - 1)
  return [
    {
      "confidence": float(confidence[which == b].mean()),
      "frequency": float(matched[which == b].mean()),
      "count": int((which == b).sum()),
    }
    for b in np.unique(which)
  ]


def expected_calibration_error(rows: list[dict]) -> float:
  """ECE = sum_b (n_b / N) |frequency_b - confidence_b|, in [0, 1].

  Naeini, Cooper and Hauskrecht (AAAI 2015), with equal-width bins.
  """
  total = sum(row["count"] for row in rows)
  return sum(
    row["count"] / total * abs(row["frequency"] - row["confidence"])
    for row in rows
  )


def _check(
  confidence: np.ndarray, score: np.ndarray, matched: np.ndarray
) -> None:
  if not len(confidence) == len(score) == len(matched):
    raise UserError(
      f"{len(confidence)} confidences, {len(score)} scores and {len(matched)} "
      "marks do not belong to the same pairs"
    )
  if not len(confidence):
    raise UserError("there is no pair to judge")
  if not (np.isfinite(score).all() and np.isfinite(confidence).all()):
    raise UserError("scores or confidences hold NaN or infinity")
  if confidence.min() < 0 or confidence.max() > 1:
    raise UserError(
      f"confidences lie in [{confidence.min():g}, {confidence.max():g}], not "
      "in [0, 1]"
    )
  if not np.isin(matched, (1, 0, UNKNOWN)).all():
    raise UserError("`matched` knows 1, 0 and -1 (unknown) only")
