"""One self-contained HTML page about a run: no network, no script.

Everything that comes from data is escaped by jinja2; a thumbnail that is not a
base64 JPEG is refused. report.html holds the page and report.css its looks.
"""

import base64
import binascii
import json
import math
from collections.abc import Iterable
from pathlib import Path

import jinja2
import numpy as np

from calince_jax.errors import UserError
from calince_jax.evals.report import charts

TASKS = ("retrieval", "video_retrieval", "recognition", "calibration")
# What each result must hold (evaluate writes it).
REQUIRED = {
  "retrieval": ("protocol", "metrics", "chance"),
  "video_retrieval": ("protocol", "metrics", "chance"),
  "recognition": ("protocol", "metrics", "chance", "majority"),
  "calibration": ("protocol", "metrics", "chance", "histogram", "reliability"),
}
RETRIEVAL_COLUMNS = ("R@1", "R@5", "R@10", "MedR", "MeanR")
WORST_SHOWN = 12  # the others are folded away
CALIBRATION_NAMES = {
  "auc": "AUC of the score, matched against mismatched",
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


def render(run: dict) -> str:
  """The page as one string.

  Args:
    run: {"name": str, "workdir": str as a command line would say it, "date":
      str, "config": dict or None, "metrics": list of logged rows, maybe empty,
      and for each of TASKS its result as evaluate wrote it, or None}. What is
      absent becomes a line that names the command which makes it.

  Raises:
    UserError: a result lacks a part, or a thumbnail is not a base64 JPEG.
  """
  for task in TASKS:
    if run[task] is not None:
      _check(task, run[task])
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["short"] = short
  return environment.get_template("report.html").render(
    run=run,
    facts=_facts(run),
    cards=_cards(run),
    panels=_panels(run),
    tables={task: _table(task, run[task]) for task in TASKS if run[task]},
    calibration=_calibration(run["calibration"]),
    config=_flat(run["config"]) if run["config"] else [],
    worst_shown=WORST_SHOWN,
  )


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


def _check(task: str, result: dict) -> None:
  missing = [part for part in REQUIRED[task] if part not in result]
  if missing:
    raise UserError(
      f"{task}.json lacks {missing}; make it again with "
      f"python -m calince_jax.evaluate --task={task}"
    )
  shown = [
    hit for query in _part(result, "gallery") for hit in query["hits"]
  ] + _part(result, "worst")
  for item in shown:
    _check_thumbnail(task, item)


def _check_thumbnail(task: str, item: dict) -> None:
  try:
    data = base64.b64decode(item["thumbnail"], validate=True)
  except (binascii.Error, TypeError, ValueError):
    data = b""
  if not data.startswith(b"\xff\xd8\xff"):
    raise UserError(
      f"{task}.json: the thumbnail of {item['id']!r} is not a base64 JPEG"
    )


def _part(result: dict, name: str) -> list:
  """An optional part of a result."""
  if name not in result:
    return []
  return result[name]


def _facts(run: dict) -> list[tuple[str, object]]:
  """What the header says beside the run's name."""
  facts = []
  results = [run[task] for task in TASKS if run[task]]
  for name, label in (
    ("data", "data set"),
    ("checkpoint_step", "checkpoint step"),
  ):
    values = {r["protocol"][name] for r in results if name in r["protocol"]}
    facts += [(label, value) for value in sorted(values)]
  if run["metrics"]:
    facts.append(("trained for", f"{run['metrics'][-1]['step']:,} steps"))
  return [*facts, ("report made", run["date"])]


def _cards(run: dict) -> list[dict]:
  """The headline numbers, each with what chance would give."""
  wanted = (
    ("retrieval", "t2v_R@1", "Text → video R@1", "%"),
    ("retrieval", "v2t_R@1", "Video → text R@1", "%"),
    ("retrieval", "t2v_MedR", "Text → video median rank", ""),
    ("video_retrieval", "R@1", "Video → video R@1", "%"),
    ("recognition", "top1", "Action recognition top-1", "%"),
    ("calibration", "auc", "Score AUC, matched or not", "auc"),
  )
  cards = []
  for task, metric, label, unit in wanted:
    result = run[task]
    if result is None or metric not in result["metrics"]:
      continue
    value, chance = result["metrics"][metric], result["chance"][metric]
    scale = {"%": 1, "auc": 100, "": None}[unit]
    digits = ".3f" if unit == "auc" else ".1f"
    cards.append(
      {
        "label": label,
        "value": format(value, digits),
        "chance": format(chance, digits),
        "unit": " %" if unit == "%" else "",
        "bar": scale and (scale * value, scale * chance),
      }
    )
  return cards


def _panels(run: dict) -> list[dict]:
  """Small charts of what training logged; a panel without data is left out."""
  rows = run["metrics"]
  batch = truth = None
  if run["config"] and "batch_size" in run["config"]:
    batch = run["config"]["batch_size"]
  if run["calibration"] and "noise_rate_true" in run["calibration"]["metrics"]:
    truth = run["calibration"]["metrics"]["noise_rate_true"]
  panels = []
  for key, title, baseline, baseline_label in (
    ("correspondence", "Correspondence loss", "base_rate_entropy", "base rate"),
    ("contrastive", "Contrastive loss", "ln_N", "ln N"),
    ("predictive", "Predictive loss", None, ""),
    ("effective_sample_size", "Effective sample size", batch, "batch"),
    ("balanced_accuracy", "Head, balanced accuracy", 0.5, "chance"),
    ("noise_rate", "Noise rate, estimated", truth, "true"),
  ):
    used = [row for row in rows if key in row]
    if not used:
      continue
    if isinstance(baseline, str):
      has = all(baseline in row for row in used)
      line = [row[baseline] for row in used] if has else None
    else:
      line = None if baseline is None else [baseline] * len(used)
    values = [math.nan if row[key] is None else row[key] for row in used]
    last = np.mean(values[-max(1, len(values) // 20) :])
    beside = f"{baseline_label} {_three_digits(line[-1])}" if line else ""
    panels.append(
      {
        "title": title,
        "last": _three_digits(last),
        "beside": beside,
        "svg": charts.line_chart(
          [row["step"] for row in used],
          values,
          baseline=line,
          description=f"{title} over training steps; last {last:.4g}"
          + (f", against {beside}" if beside else ""),
        ),
      }
    )
  return panels


def _three_digits(value: float) -> str:
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _table(task: str, result: dict) -> dict:
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
        (_part(result, "dual_softmax"), "with dual softmax *", "minor"),
      ):
        if values:
          cells = _cells(values[f"{prefix}_{c}"] for c in RETRIEVAL_COLUMNS)
          rows.append((name, cells, kind))
    return {"columns": RETRIEVAL_COLUMNS, "rows": rows}
  columns = list(metrics)
  rows = [("frozen features", _cells(metrics.values()), "ours")]
  if "intervals" in result:
    cells = [
      "{:.1f} to {:.1f}".format(*result["intervals"][c]) for c in columns
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


def _calibration(result: dict | None) -> dict:
  """The two charts of the scores, and how many of the worst pairs are bad."""
  if result is None:
    return {}
  histogram = dict(result["histogram"])
  edges = histogram.pop("edges")
  rows = result["reliability"]
  known = [w for w in _part(result, "worst") if w["matched"] is not None]
  return {
    "histogram": charts.histogram_chart(
      edges,
      histogram,
      description="Histogram of the confidence of "
      + ", ".join(f"{sum(c)} {kind}" for kind, c in histogram.items() if sum(c))
      + " pairs",
    ),
    "reliability": rows
    and charts.reliability_chart(
      rows,
      description="Share of matched pairs over confidence: "
      + ", ".join(f"{r['confidence']:.2f}: {r['frequency']:.2f}" for r in rows),
    ),
    "known": len(known),
    "bad": sum(w["matched"] == 0 for w in known),
  }


def _flat(config: dict, prefix: str = "") -> list[tuple[str, str]]:
  """("model.width", "384") of each leaf."""
  rows = []
  for name, value in config.items():
    if isinstance(value, dict):
      rows += _flat(value, f"{prefix}{name}.")
    else:
      rows.append((f"{prefix}{name}", json.dumps(value, ensure_ascii=False)))
  return rows
