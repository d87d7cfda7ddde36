"""One self-contained HTML page about a run: no network, no script.

Everything that comes from data is escaped by jinja2; a thumbnail that is not a
base64 JPEG is refused. report.html holds the page and report.css its looks.
"""

import base64
import binascii
import json
import math
from pathlib import Path

import jinja2
import numpy as np

from calince_jax.errors import UserError
from calince_jax.evals.report import charts, headlines, speed, tables
from calince_jax.evals.report.read import MORE_TASKS, TASKS, part

# The parts of a result that the page needs.
REQUIRED = {
  "retrieval": ("protocol", "metrics", "chance"),
  "video_retrieval": ("protocol", "metrics", "chance"),
  "recognition": ("protocol", "metrics", "chance", "majority"),
  "calibration": ("protocol", "metrics", "chance", "histogram", "reliability"),
  "classification": ("protocol", "metrics", "chance"),
  "zero_shot": ("protocol", "metrics", "chance"),
}
LONGEST_TEXT = 300  # characters of a caption or an id
WORST_SHOWN = 12  # the others are folded away


def render(run: dict) -> str:
  """The page as one string.

  Args:
    run: {"name": str, "workdir": str as on a command line, "date": str,
      "config": dict or None, "metrics": list of logged rows, maybe empty,
      "notes": sentences on how training went, maybe none, and for each of TASKS
      its result as evaluate wrote it, or None; of MORE_TASKS, if any}. Where
      something is absent, the page names the command that makes it.

  Raises:
    UserError: a result lacks a part, or a thumbnail is not a base64 JPEG.
  """
  run = run | {"retrieval": _renamed(run["retrieval"])}
  shown = [task for task in (*TASKS, *MORE_TASKS) if run.get(task)]
  for task in shown:
    _check(task, run[task])
  return (
    templates()
    .get_template("report.html")
    .render(
      title=run["name"],
      run=run,
      facts=_facts(run),
      cards=headlines.cards(run),
      panels=_panels(run),
      speed=speed.lines(run["metrics"]),
      tables={task: tables.table(task, run[task]) for task in shown},
      calibration=_calibration(run["calibration"]),
      found=headlines.wrong_captions(run["calibration"]),
      config=_flat(run["config"]) if run["config"] else [],
      worst_shown=WORST_SHOWN,
    )
  )


def clipped(text: str) -> str:
  """A caption or id from others, as long as a page can show it."""
  text = str(text)
  return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " ..."


def templates(*folders: Path) -> jinja2.Environment:
  """The templates of this folder and of others; all values are escaped."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["short"] = tables.short
  environment.filters["clipped"] = clipped
  return environment


def make_page(run: dict, workdir: Path) -> tuple[str, str]:
  """The page and, for the terminal, the headline numbers.

  Args:
    run: from read.read_run.
    workdir: the run folder, for messages.

  Raises:
    UserError: a file holds what evaluate and train do not write.
  """
  try:
    return render(run), headlines.summary(run)
  except UserError:
    raise
  # In files from others anything may have another form, at any depth.
  except (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    jinja2.TemplateError,
  ) as error:
    wrong = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise UserError(
      f"a file of {workdir} is not as train and evaluate write it ({wrong}); "
      "run evaluate again, or undo what was changed by hand"
    ) from error


def _check(task: str, result: dict) -> None:
  missing = [part for part in REQUIRED[task] if part not in result]
  if missing:
    raise UserError(
      f"{task}.json lacks {missing}; make it again with "
      f"python -m calince_jax.evaluate --task={task}"
    )
  shown = [
    hit for query in part(result, "queries") for hit in query["hits"]
  ] + part(result, "worst")
  for item in shown:
    _check_thumbnail(task, item)


def _renamed(result: dict | None) -> dict | None:
  """A retrieval result that an older evaluate wrote, with today's names."""
  if result is None or "gallery" not in result:
    return result
  queries = [
    query
    | {"hits": [hit | {"similarity": hit["score"]} for hit in query["hits"]]}
    for query in result["gallery"]
  ]
  return result | {"queries": queries}


def _check_thumbnail(task: str, item: dict) -> None:
  try:
    data = base64.b64decode(item["thumbnail"], validate=True)
  except (binascii.Error, TypeError, ValueError):
    data = b""
  if not data.startswith(b"\xff\xd8\xff"):
    raise UserError(
      f"{task}.json: the thumbnail of {item['id']!r} is not a base64 JPEG"
    )


def _facts(run: dict) -> list[tuple[str, object]]:
  """Label and value of the facts beside the run's name in the header."""
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
    ("examples_per_second_per_device", "Examples a second, device", None, ""),
    ("mfu", "Model FLOPs utilisation", None, ""),
    ("goodput", "Goodput, share of time in steps", None, ""),
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


def _calibration(result: dict | None) -> dict:
  """The two charts of the confidence, and the truth of the worst pairs."""
  if result is None:
    return {}
  histogram = dict(result["histogram"])
  edges = histogram.pop("edges")
  rows = result["reliability"]
  known = [w for w in part(result, "worst") if w["matched"] is not None]
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
