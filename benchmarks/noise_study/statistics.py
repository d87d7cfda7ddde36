"""Means, paired differences and shares over the seeds of the noise study.

Values of runs are dicts {seed: value}; pairs are those of one seed. What cannot
be computed, such as the spread of one seed, is None.
"""

import collections
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.noise_study.runs import (
  AT_THE_END,
  QUALITIES,
  TASKS,
  Result,
  curve_of,
  measure,
)

CONFIDENCE = 0.95
RESAMPLES = 9999
BASELINE, CEILING = "cotrain", "oracle"
POINTS = ("end", "selected")
COST_FILE = "cost.json"

Values = Mapping[int, float]


def spread(values: Values) -> dict[str, Any]:
  """{mean, sd (of n - 1), min, max, seeds} over the seeds."""
  x = np.array(list(values.values()), np.float64)
  return {
    "mean": float(x.mean()),
    "sd": float(x.std(ddof=1)) if len(x) > 1 else None,
    "min": float(x.min()),
    "max": float(x.max()),
    "seeds": len(x),
  }


def paired_difference(values: Values, baseline: Values) -> dict[str, Any]:
  """The mean of d = value - baseline over common seeds, and its interval.

      mean(d) -+ t_{0.975, n-1} sd(d) / sqrt(n)

  Returns:
    {difference, low, high, seeds}.
  """
  common = sorted(values.keys() & baseline.keys())
  d = np.array([values[s] - baseline[s] for s in common], np.float64)
  n, low, high = len(d), None, None
  if n > 1:
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    half *= d.std(ddof=1) / np.sqrt(n)
    low, high = float(d.mean() - half), float(d.mean() + half)
  mean = float(d.mean()) if n else None
  return {"difference": mean, "low": low, "high": high, "seeds": n}


def closing(values: Values, baseline: Values, ceiling: Values) -> dict | None:
  """How much of the way from the baseline to the ceiling, in percent.

      100 (mean m - mean c) / (mean o - mean c)     over the common seeds

  with the percentile interval of a bootstrap over seeds, which keeps the m, c
  and o of one seed together. There is no interval where the ceiling is not
  above the baseline in every resample, and None if it is not at all.

  Returns:
    {share, low, high, seeds}, or None.
  """
  common = sorted(values.keys() & baseline.keys() & ceiling.keys())
  m, c, o = (
    np.array([x[s] for s in common], np.float64)
    for x in (values, baseline, ceiling)
  )
  if not common or o.mean() <= c.mean():
    return None

  def share(m, c, o, axis=-1):
    way = o.mean(axis) - c.mean(axis)
    gone = m.mean(axis) - c.mean(axis)
    return 100 * gone / np.where(way > 0, way, np.nan)

  low = high = None
  if len(common) > 1:
    with warnings.catch_warnings():  # of intervals of no width, or none
      warnings.simplefilter("ignore")
      interval = stats.bootstrap(
        (m, c, o),
        share,
        paired=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
      ).confidence_interval
    if np.isfinite(interval).all():
      low, high = map(float, interval)
  return {
    "share": float(share(m, c, o)),
    "low": low,
    "high": high,
    "seeds": len(common),
  }


def ratios(
  seconds: Mapping[str, Sequence[float]], reference: str
) -> dict[str, dict[str, float]]:
  """{method: {median, min, max}} of seconds / the reference's, by round."""
  result = {}
  for method, mine in seconds.items():
    r = [a / b for a, b in zip(mine, seconds[reference], strict=True)]
    result[method] = {
      "median": statistics.median(r),
      "min": min(r),
      "max": max(r),
    }
  return result


def summarise(results: Sequence[Result]) -> dict[str, Any]:
  """All statistics, first by condition (`0.4`, `0.4 near`), then by method.

  Returns:
    {tasks: {rate: {method: {name of AT_THE_END: spread, paired difference
    against co-training, closing}}}, task_chance: {name: percent}, quality:
    {rate: {method: {point: {metric: spread and paired difference}}}}, closing:
    {rate: {method: {point: closing}}}, score: {rate: {method: {name: spread}}},
    curves: {rate: {method: {auc, ece: [{step, mean, min, max, seeds}]}}}}.
    Methods without any run, or without a score, are left out; and `closing`
    without noise, which leaves no way to go.
  """
  groups = collections.defaultdict(lambda: collections.defaultdict(list))
  for result in results:
    groups[result.condition][result.method].append(result)
  parts = ("tasks", "quality", "closing", "score", "curves")
  summary = {name: {} for name in parts} | {"task_chance": _chance(results)}
  for rate, methods in groups.items():
    measured = {
      method: {result.seed: measure(result) for result in mine}
      for method, mine in methods.items()
    }
    parts = {
      "tasks": {m: _at_the_end(measured, m) for m in methods},
      "quality": {m: _quality(measured, m) for m in methods},
      "closing": {m: _closing(measured, m) for m in methods if rate != "0"},
      "score": {m: _score(measured[m]) for m in methods},
      "curves": {m: _curves(mine) for m, mine in methods.items()},
    }
    for name, part in parts.items():
      summary[name][rate] = {m: value for m, value in part.items() if value}
  return summary


def _column(measured, method, name):
  """{seed: value} of the runs of a method that have it."""
  if method not in measured:
    return {}
  return {s: row[name] for s, row in measured[method].items() if name in row}


def _quality(measured, method):
  document = {}
  for point in POINTS:
    document[point] = {}
    for name in QUALITIES:
      mine = _column(measured, method, f"{point}/{name}")
      base = _column(measured, BASELINE, f"{point}/{name}")
      document[point][name] = spread(mine) | {
        "against_baseline": paired_difference(mine, base)
      }
  return document


def _at_the_end(measured, method):
  document = {}
  for name in AT_THE_END:
    mine, base, ceiling = (
      _column(measured, m, f"end/{name}") for m in (method, BASELINE, CEILING)
    )
    if mine:
      document[name] = spread(mine) | {
        "against_baseline": paired_difference(mine, base),
        "closing": closing(mine, base, ceiling),
      }
  return document


def _chance(results):
  """What guessing gets in the tasks that were evaluated, in percent."""
  return {
    name: result.tasks[task]["chance"][metric]
    for result in results
    for task, (metric, name) in TASKS.items()
    if task in result.tasks
  }


def _closing(measured, method):
  shares = {
    point: closing(
      *(
        _column(measured, m, f"{point}/R@1")
        for m in (method, BASELINE, CEILING)
      )
    )
    for point in POINTS
  }
  return {point: share for point, share in shares.items() if share}


def _score(runs):
  names = dict.fromkeys(name for row in runs.values() for name in row)
  return {
    name: spread({s: row[name] for s, row in runs.items() if name in row})
    for name in names
    if "/" not in name and name != "selected_step"
  }


def _curves(results):
  curves = {}
  for name in ("auc", "ece"):
    at = collections.defaultdict(dict)
    for result in results:
      for step, value in curve_of(result, name):
        at[step][result.seed] = value
    curve = [{"step": step, **spread(at[step])} for step in sorted(at)]
    if curve:
      curves[name] = curve
  return curves
