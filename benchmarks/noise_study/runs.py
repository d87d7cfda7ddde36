"""The runs of the noise study: read from their folders, one row each."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calince_jax.errors import UserError
from calince_jax.files import read_lines
from launch.expand import ARGUMENT, Run
from launch.workers import read_done

UNIFORM = "uniform"
WAYS = ("t2v", "v2t")
RECALLS = ("R@1", "R@5", "R@10")
# R@k alone is the mean of both directions.
QUALITIES = (*RECALLS, *(f"{way}_{name}" for way in WAYS for name in RECALLS))
# Of the last evaluation; in `pairs/` or, the estimate, beside it.
LAST = {
  "noise_rate_estimate": "noise_rate",
  "auc_confidence_end": "pairs/auc_confidence",
  "weight_matched": "pairs/weight_matched",
  "weight_mismatched": "pairs/weight_mismatched",
  "effective_sample_share": "pairs/effective_sample_share",
}
# Tasks of evaluate, after training: its metric, and its name here.
TASKS = {
  "recognition": ("top1", "recognition"),
  "video_retrieval": ("R@1", "video_R@1"),
}
# What is compared at the end of training, over all tasks.
AT_THE_END = ("R@1", "R@10", *(name for _, name in TASKS.values()))
LEARNS = 5  # times the chance of the in-batch accuracy
SAME = ("batch_size", "total_steps", "evaluate_every", "evaluate_splits")


@dataclasses.dataclass(frozen=True)
class Result:
  """A finished run.

  Attributes:
    method: row of the table.
    noise_rate: share of training clips with another one's caption.
    seed: of the run and of the exchange.
    seconds: what it took, or None where it was not run by `run_all`.
    rows: the evaluations of metrics.jsonl, rising in step.
    kind: of the wrong captions, see data.mismatch_kind.
    took_off: the step at which it began to learn; None: not logged, or never.
    tasks: of TASKS that were evaluated: {task: {metrics, chance}}.
  """

  method: str
  noise_rate: float
  seed: int
  seconds: float | None
  rows: Sequence[dict[str, Any]]
  kind: str = UNIFORM
  took_off: int | None = None
  tasks: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def condition(self) -> str:
    """Noise rate and kind as the key of a table: `0.4`, `0.4 near`."""
    return condition_name(self.noise_rate, self.kind)


def condition_name(noise_rate: float, kind: str = UNIFORM) -> str:
  """A noise rate and a kind of wrong captions as the key of a table."""
  return f"{noise_rate:g}" + ("" if kind == UNIFORM else f" {kind}")


def condition_of(run: Run) -> str:
  """The condition of a run that need not be there."""
  return condition_name(run.overrides["data.mismatch"], kind_of(run))


def kind_of(run: Run) -> str:
  """The kind of wrong captions; the sweep names those that are not uniform."""
  return run.overrides.get("data.mismatch_kind", UNIFORM)


def read_results(
  runs: Sequence[Run], out: Path
) -> tuple[list[Result], list[str]]:
  """The finished runs in OUT/NAME, and the names of those that are missing.

  A run is finished when its log has the evaluation of its last step.

  Raises:
    UserError: two runs differ in batch, steps or evaluations.
  """
  results, missing, shared = [], [], {}
  for run in runs:
    rows = _evaluations(out / run.name)
    if not rows:
      missing.append(run.name)
      continue
    document = json.loads((out / run.name / "config.json").read_text())
    config = {name: document["config"][name] for name in SAME}
    if rows[-1]["step"] < config["total_steps"]:
      missing.append(run.name)
      continue
    shared.setdefault(json.dumps(config), run.name)
    if len(shared) > 1:
      (a, first), (b, second) = shared.items()
      raise UserError(
        f"{first} has {a} and {second} has {b}: delete the folder of the one"
        " that is out of date"
      )
    done = read_done(out / run.name)
    results.append(
      Result(
        method=run.overrides[ARGUMENT],
        noise_rate=run.overrides["data.mismatch"],
        seed=run.overrides["seed"],
        seconds=None if done is None else done["seconds"],
        rows=rows,
        kind=kind_of(run),
        took_off=_took_off(out / run.name),
        tasks=_tasks(out / run.name),
      )
    )
  return results, missing


def _evaluations(folder: Path) -> list[dict[str, Any]]:
  rows = [json.loads(line) for line in read_lines(folder / "metrics.jsonl")]
  return [row for row in rows if "val/t2v_R@1" in row]


def _took_off(folder: Path) -> int | None:
  path = folder / "events.jsonl"
  events = map(json.loads, read_lines(path)) if path.exists() else ()
  steps = [e["step"] for e in events if e["event"] == "took_off"]
  return steps[0] if steps else None


def _tasks(folder: Path) -> dict[str, Any]:
  paths = {task: folder / "eval" / f"{task}.json" for task in TASKS}
  return {
    task: json.loads(path.read_text())
    for task, path in paths.items()
    if path.exists()
  }


def mean_recall(row: dict[str, Any], split: str, name: str = "R@1") -> float:
  """The mean of both directions, percent."""
  return sum(row[f"{split}/{way}_{name}"] for way in WAYS) / len(WAYS)


def selected(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The evaluation with the best mean R@1 on val; of equal ones the first."""
  return max(rows, key=lambda row: mean_recall(row, "val"))


def measure(result: Result) -> dict[str, float]:
  """What the table says of a run; what it does not have is left out.

  `end/...` is the last evaluation, `selected/...` the one that val chose; both
  are on test; recognition and video retrieval are of the end alone. `stuck` is
  1 where the in-batch accuracy ends below LEARNS times chance, `collapse_end`
  the mean cosine of two clips or of two texts, whichever is greater, and
  `noise_rate_covered` 1 where the interval of the noise rate holds the truth.
  With x_t the AUC (ECE) of the score (confidence) at evaluation t, `auc_fall`
  is max_t (max_{s<=t} x_s - x_t) and `ece_rise` likewise
  max_t (x_t - min_{s<=t} x_s).
  """
  chosen = selected(result.rows)
  values = {"selected_step": chosen["step"]}
  for point, row in (("end", result.rows[-1]), ("selected", chosen)):
    for name in RECALLS:
      values[f"{point}/{name}"] = mean_recall(row, "test", name)
      for way in WAYS:
        values[f"{point}/{way}_{name}"] = row[f"test/{way}_{name}"]
  for name, sign in (("auc", 1), ("ece", -1)):
    curve = [y for _, y in curve_of(result, name)]
    if not curve:
      continue
    best, loss = curve[0], 0.0
    for y in curve:
      best = max(best, y, key=lambda x: sign * x)
      loss = max(loss, sign * (best - y))
    values |= {f"{name}_first": curve[0], f"{name}_best": best}
    values[f"{name}_end"] = curve[-1]
    values["auc_fall" if sign > 0 else "ece_rise"] = loss
  last = result.rows[-1]
  for name, key in LAST.items():
    if _known(last, key):
      values[name] = last[key]
  for task, (metric, name) in TASKS.items():
    if task in result.tasks:
      values[f"end/{name}"] = result.tasks[task]["metrics"][metric]
  if result.took_off is not None:
    values["take_off"] = result.took_off
  if _known(last, "in_batch_accuracy"):
    least = LEARNS * math.exp(-last["ln_N"])
    values["stuck"] = float(last["in_batch_accuracy"] < least)
  if _known(last, "video_collapse"):
    values["collapse_end"] = max(last["video_collapse"], last["text_collapse"])
  if _known(last, "noise_rate_low"):
    low, high = last["noise_rate_low"], last["noise_rate_high"]
    values["noise_rate_covered"] = float(low <= result.noise_rate <= high)
  if "noise_rate_estimate" in values:
    error = abs(values["noise_rate_estimate"] - result.noise_rate)
    values["noise_rate_error"] = error
  return values


def curve_of(result: Result, name: str) -> list[tuple[int, float]]:
  """(step, pairs/NAME) of the evaluations that have it."""
  key = f"pairs/{name}"
  return [(row["step"], row[key]) for row in result.rows if _known(row, key)]


def _known(row, key):
  """The log says NaN, or nothing, of what a method does not have."""
  return key in row and row[key] is not None and math.isfinite(row[key])
