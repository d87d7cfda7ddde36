"""The tables of the report."""

import math
from collections.abc import Iterable

from calince_jax.evals.report.read import part

RETRIEVAL_COLUMNS = ("R@1", "R@5", "R@10", "MedR", "MeanR")
CALIBRATION_NAMES = {
  "auc": "AUC of the alignment score, matched against mismatched",
  "auc_head": "AUC of the head's logit alone",
  "auc_cosine": "AUC of the cosine alone",
  "ece": "ECE of the confidence",
  "mean_confidence": "mean confidence",
  "mean_confidence_matched": "mean confidence of matched pairs",
  "mean_confidence_mismatched": "mean confidence of mismatched pairs",
  "noise_rate_estimate": "noise rate, estimated",
  "noise_rate_in_training": "noise rate, estimated in training",
  "noise_rate_true": "noise rate, true",
}


OURS = {
  "video_retrieval": "frozen features",
  "recognition": "frozen features",
  "classification": "fine-tuned classifier",
  "zero_shot": "prompts",
}


def table(task: str, result: dict) -> dict:
  """Columns and rows of a task's protocol table."""
  metrics, chance = result["metrics"], result["chance"]
  if task == "calibration":
    rows = [
      (CALIBRATION_NAMES[name], [short(metrics[name])], "")
      for name in CALIBRATION_NAMES
      if name in metrics
    ]
    return {"columns": [""], "rows": rows}
  if task == "retrieval":
    rows = []
    for prefix, label in (("t2v", "Text → video"), ("v2t", "Video → text")):
      for values, name, kind in (
        (metrics, label, "ours"),
        (chance, "chance", "minor"),
        (part(result, "dual_softmax"), "with dual softmax *", "minor"),
      ):
        if values:
          cells = _cells(values[f"{prefix}_{c}"] for c in RETRIEVAL_COLUMNS)
          rows.append((name, cells, kind))
    return {"columns": RETRIEVAL_COLUMNS, "rows": rows}
  columns = list(metrics)
  rows = [(OURS[task], _cells(metrics.values()), "ours")]
  if "intervals" in result:
    cells = [
      "{:.1f} to {:.1f}".format(*result["intervals"][c])
      if c in result["intervals"]
      else ""
      for c in columns
    ]
    rows.append(("95 % interval", cells, "minor"))
  for name, label in (
    ("majority", "most frequent class"),
    ("chance", "chance"),
  ):
    if name in result:
      cells = _cells(result[name][c] for c in columns)
      rows.append((label, cells, "minor"))
  return {
    "columns": [c.replace("top", "top-").replace("_", " ") for c in columns],
    "rows": rows,
  }


def _cells(values: Iterable[float]) -> list[str]:
  return [f"{value:,.1f}" for value in values]


def short(value: object) -> str:
  """A number as a table shows it; other values as they are."""
  if value is None:
    return "not known"
  if isinstance(value, bool):
    return "yes" if value else "no"
  if not isinstance(value, (int, float)):
    return str(value)
  if isinstance(value, int) or not math.isfinite(value):
    return f"{value:,}"
  return f"{value:.3f}" if abs(value) < 1 else f"{value:,.1f}"
