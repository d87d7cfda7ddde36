"""Alignment scores and confidences of pairs, compared with the known truth."""

from collections.abc import Mapping

import numpy as np
from sklearn import metrics as sklearn_metrics

from calince_jax.errors import UserError

RELIABILITY_BINS = 15
HISTOGRAM_BINS = 20
UNKNOWN = -1


def calibration_report(
  confidence: np.ndarray, alignment_score: np.ndarray, matched: np.ndarray
) -> dict:
  """Evaluates the confidences of a data set's pairs.

  Args:
    confidence: float [N] in [0, 1], the probability that the pair is matched
      as the model sees it.
    alignment_score: float [N], higher for pairs that fit better.
    matched: int8 [N]: 1 the text belongs to the video, 0 it does not, -1 it is
      not known.

  Returns:
    {"metrics": mean_confidence and, of the pairs whose truth is known, auc (of
    the alignment score), ece (of the confidence), mean_confidence_matched,
    mean_confidence_mismatched, noise_rate_true; what cannot be computed is
    absent,
    "chance": {"auc": 0.5} if there is an auc,
    "histogram": {"edges" [21], "matched", "mismatched", "unknown": counts
    [20]} of the confidence,
    "reliability": see `reliability`, "wrong_captions": see `find_wrong`}.

  Raises:
    UserError: lengths differ, no pair, a value that is not finite or not in
      range.
  """
  confidence = np.asarray(confidence, np.float64)
  alignment_score = np.asarray(alignment_score, np.float64)
  matched = np.asarray(matched)
  _check(confidence, alignment_score, matched)
  metrics = {"mean_confidence": float(confidence.mean())}
  for name, chosen in (("matched", matched == 1), ("mismatched", matched == 0)):
    if chosen.any():
      metrics[f"mean_confidence_{name}"] = float(confidence[chosen].mean())
  metrics |= truth_metrics(matched, confidence, {"auc": alignment_score})
  known = matched != UNKNOWN
  edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
  return {
    "metrics": metrics,
    "chance": {"auc": 0.5} if "auc" in metrics else {},
    "histogram": {"edges": edges.tolist()}
    | {
      name: np.histogram(confidence[matched == value], edges)[0].tolist()
      for name, value in (("matched", 1), ("mismatched", 0), ("unknown", -1))
    },
    "reliability": reliability(confidence[known], matched[known] == 1),
    "wrong_captions": find_wrong(confidence, matched),
  }


def find_wrong(confidence: np.ndarray, matched: np.ndarray) -> dict[str, int]:
  """Counts the known wrong captions that a confidence below 1/2 finds.

  Args:
    confidence: float [N] in [0, 1].
    matched: int8 [N], 1, 0, or -1 for unknown: those pairs are left out.

  Returns:
    `wrong`, those that there are; `flagged`, pairs of a confidence below 1/2;
    `found`, wrong ones among them.
  """
  confidence, matched = np.asarray(confidence), np.asarray(matched)
  flagged = (confidence < 0.5) & (matched != UNKNOWN)
  return {
    "wrong": int((matched == 0).sum()),
    "flagged": int(flagged.sum()),
    "found": int((flagged & (matched == 0)).sum()),
  }


def truth_metrics(
  matched: np.ndarray, confidence: np.ndarray, ranked: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """Compares what is known of pairs with the truth, where that is known.

  Args:
    matched: int8 [N], 1, 0, or -1 for unknown: those pairs are left out.
    confidence: float [N] in [0, 1].
    ranked: float [N] each, higher for pairs that fit better.

  Returns:
    `ece` of the confidence, `noise_rate_true`, and under the names in `ranked`
    the AUC of each, matched against mismatched. What cannot be computed is
    absent: all of it without a known pair, an AUC with pairs of one kind alone,
    and what values that are not finite would give.
  """
  known = matched != UNKNOWN
  truth = matched[known] == 1
  if not known.any():
    return {}
  result = {}
  confidence = np.asarray(confidence[known], np.float64)
  if np.isfinite(confidence).all():
    result["ece"] = expected_calibration_error(reliability(confidence, truth))
  result["noise_rate_true"] = float(1 - truth.mean())
  for name, values in ranked.items():
    values = np.asarray(values[known], np.float64)
    if truth.any() and not truth.all() and np.isfinite(values).all():
      result[name] = float(sklearn_metrics.roc_auc_score(truth, values))
  return result


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
  confidence: np.ndarray, alignment_score: np.ndarray, matched: np.ndarray
) -> None:
  if not len(confidence) == len(alignment_score) == len(matched):
    raise UserError(
      f"{len(confidence)} confidences, {len(alignment_score)} alignment scores"
      f" and {len(matched)} marks do not belong to the same pairs"
    )
  if not len(confidence):
    raise UserError("there is no pair to evaluate")
  if not (np.isfinite(alignment_score).all() and np.isfinite(confidence).all()):
    raise UserError("alignment scores or confidences hold NaN or infinity")
  if confidence.min() < 0 or confidence.max() > 1:
    raise UserError(
      f"confidences lie in [{confidence.min():g}, {confidence.max():g}], not "
      "in [0, 1]"
    )
  if not np.isin(matched, (1, 0, UNKNOWN)).all():
    raise UserError("`matched` knows 1, 0 and -1 (unknown) only")
