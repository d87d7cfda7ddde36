"""The bars that the noise study must clear, each with number and verdict.

The bars were set before the runs. They are judged at both points: at the end of
training (`end`) and at the evaluation that val chose (`selected`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.noise_study.runs import condition_name
from benchmarks.noise_study.statistics import BASELINE, CEILING, POINTS

OURS, PLAIN = "cali_nce", "infonce"
MAIN_RATE = 0.4
# Percent of the way from co-training to the oracle, by noise rate.
LEAST_CLOSING = {0.2: 75.0, 0.4: 75.0, 0.6: 60.0}
LEAST_AUC, MOST_AUC_FALL = 0.98, 0.01
MOST_ECE, MOST_RATE_ERROR = 0.03, 0.05
MOST_COST = 1.05  # of a step of co-training
LEAST_COVERED = 0.9  # of the runs

Summary = Mapping[str, Any]


def judge(
  summary: Summary, methods: Sequence[str], noise_rates: Sequence[float]
) -> list[dict[str, Any]]:
  """One row a bar, in the order of the issue.

  Args:
    summary: from `summarise`; with `cost` where that has been measured.
    methods: of the study.
    noise_rates: of the study.

  Returns:
    [{bar, noise_rate, when, number, met}]; `met` is None and `number` says
    what is missing where a run that the bar needs has not been made.
  """
  rows = []
  noisy = [condition_name(rate) for rate in noise_rates if rate > 0]
  main = condition_name(MAIN_RATE)
  for point in POINTS:
    for rate in noisy:
      rows.append(_order(summary, rate, point))
      rows.append(_above(summary, rate, point))
    if 0 in noise_rates:
      rows.append(_no_loss(summary, point))
    rows.append(_best(summary, main, point, methods))
  for rate in noise_rates:
    if rate in LEAST_CLOSING:
      rows.append(_closes(summary, condition_name(rate), LEAST_CLOSING[rate]))
  rows.append(
    _bound(summary, main, "auc_end", "mean", LEAST_AUC, least=True)
    | {"bar": f"AUC of the score at least {LEAST_AUC}", "when": "end"}
  )
  rows.append(
    _bound(summary, main, "auc_fall", "max", MOST_AUC_FALL)
    | {
      "bar": f"AUC never more than {MOST_AUC_FALL} below its best so far"
      " (worst seed)",
      "when": "along training",
    }
  )
  for rate in noisy:
    rows.append(
      _bound(summary, rate, "ece_end", "mean", MOST_ECE)
      | {"bar": f"ECE of the confidence at most {MOST_ECE}", "when": "end"}
    )
  for rate in map(condition_name, noise_rates):
    rows.append(
      _bound(summary, rate, "noise_rate_error", "mean", MOST_RATE_ERROR)
      | {
        "bar": f"the noise rate estimated within {MOST_RATE_ERROR}",
        "when": "end",
      }
    )
  for condition in summary["study"]["conditions"]:
    rows.append(_never_worse(summary, condition))
    rows.append(_learns(summary, condition))
  for rate in map(condition_name, noise_rates):
    rows.append(
      _bound(
        summary, rate, "noise_rate_covered", "mean", LEAST_COVERED, least=True
      )
      | {
        "bar": "the interval holds the true share of wrong captions in at"
        f" least {100 * LEAST_COVERED:.0f} % of runs",
        "when": "end",
      }
    )
  return [*rows, _cost(summary)]


def rivals(methods: Sequence[str]) -> list[str]:
  """What ours is compared with: not its variants, nor the oracle."""
  return [
    method
    for method in methods
    if method != CEILING and not method.startswith("cali")
  ]


def _row(bar, rate, when, number, met):
  return {
    "bar": bar,
    "noise_rate": rate,
    "when": when,
    "number": number,
    "met": met,
  }


def _not_run(bar, rate, when, missing):
  return _row(bar, rate, when, f"not run: {', '.join(missing)}", None)


def _missing(summary, rate, methods):
  quality = summary["quality"]
  if rate not in quality:
    return list(methods)
  return [method for method in methods if method not in quality[rate]]


def _recall(summary, rate, method, point):
  return summary["quality"][rate][method][point]["R@1"]


def _order(summary, rate, point):
  order = (OURS, BASELINE, PLAIN)
  bar = f"mean R@1: {' > '.join(order)}"
  missing = _missing(summary, rate, order)
  if missing:
    return _not_run(bar, rate, point, missing)
  ours, base, plain = (
    _recall(summary, rate, method, point)["mean"] for method in order
  )
  number = f"{ours:.2f}, {base:.2f}, {plain:.2f}"
  return _row(bar, rate, point, number, ours > base > plain)


def _difference(summary, rate, point, bar):
  """The paired difference, or the row that says why there is none."""
  missing = _missing(summary, rate, (OURS, BASELINE))
  if missing:
    return None, _not_run(bar, rate, point, missing)
  found = _recall(summary, rate, OURS, point)["against_baseline"]
  if found["low"] is None:
    return None, _not_run(bar, rate, point, ["two seeds of both"])
  return found, None


def _above(summary, rate, point):
  bar = f"95 % interval of {OURS} - {BASELINE} above 0"
  found, row = _difference(summary, rate, point, bar)
  return row or _row(bar, rate, point, interval(found), found["low"] > 0)


def _no_loss(summary, point):
  bar = f"95 % interval of {OURS} - {BASELINE} covers 0 or lies above"
  found, row = _difference(summary, "0", point, bar)
  return row or _row(bar, "0", point, interval(found), found["high"] >= 0)


def _never_worse(summary, rate):
  bar = f"never worse: 95 % interval of {OURS} - {BASELINE} in R@10 not below 0"
  tasks = summary["tasks"]
  missing = _missing(summary, rate, (OURS, BASELINE))
  if missing:
    return _not_run(bar, rate, "end", missing)
  found = tasks[rate][OURS]["R@10"]["against_baseline"]
  if found["low"] is None:
    return _not_run(bar, rate, "end", ["two seeds of both"])
  return _row(bar, rate, "end", interval(found), found["high"] >= 0)


def _learns(summary, rate):
  bar = f"runs of {OURS} at chance, no more than of {BASELINE}"
  scores = summary["score"]
  stuck = [
    scores[rate][method]["stuck"]["mean"]
    for method in (OURS, BASELINE)
    if rate in scores
    and method in scores[rate]
    and "stuck" in scores[rate][method]
  ]
  if len(stuck) < 2:
    return _not_run(bar, rate, "end", [OURS, BASELINE])
  number = f"{stuck[0]:.0%}, {stuck[1]:.0%}"
  return _row(bar, rate, "end", number, stuck[0] <= stuck[1])


def interval(found: Mapping[str, Any], name: str = "difference") -> str:
  """`+1.23 (+0.45 to +2.01)`; without the bounds where there are none."""
  text = f"{found[name]:+.2f}"
  if found["low"] is None:
    return text
  return f"{text} ({found['low']:+.2f} to {found['high']:+.2f})"


def _closes(summary, rate, least):
  bar = (
    f"closes at least {least:.0f} % of the way from {BASELINE} to {CEILING} in"
    " R@10"
  )
  missing = _missing(summary, rate, (OURS, BASELINE, CEILING))
  if missing:
    return _not_run(bar, rate, "end", missing)
  found = summary["tasks"][rate][OURS]["R@10"]["closing"]
  if found is None:
    number = f"{CEILING} is not above {BASELINE}"
    return _row(bar, rate, "end", number, False)
  number = f"{found['share']:.0f} %"
  if found["low"] is not None:
    number += f" ({found['low']:.0f} to {found['high']:.0f} %)"
  return _row(bar, rate, "end", number, found["share"] >= least)


def _best(summary, rate, point, methods):
  bar = f"mean R@1 of {OURS} at or above every other loss"
  others = rivals(methods)
  missing = _missing(summary, rate, [OURS, *others])
  if missing or not others:
    return _not_run(bar, rate, point, missing or ["any other"])
  means = {
    method: _recall(summary, rate, method, point)["mean"] for method in others
  }
  ours = _recall(summary, rate, OURS, point)["mean"]
  best = max(means, key=means.get)
  number = f"{ours:.2f}; the best other is {best}, {means[best]:.2f}"
  return _row(bar, rate, point, number, ours >= means[best])


def _bound(summary, rate, name, statistic, bound, *, least=False):
  """A bar on a number of the score; the caller gives `bar` and `when`."""
  scores = summary["score"]
  known = rate in scores and OURS in scores[rate]
  if not known or name not in scores[rate][OURS]:
    return _not_run("", rate, "", [OURS])
  value = scores[rate][OURS][name][statistic]
  met = value >= bound if least else value <= bound
  return _row("", rate, "", f"{value:.4f}", met)


def _cost(summary):
  bar = f"a step costs at most {MOST_COST:.2f} of co-training's"
  cost = summary["cost"]
  if cost is None or not {OURS, BASELINE} <= cost["against"][BASELINE].keys():
    return _not_run(bar, "", "", ["benchmarks.noise_study.cost"])
  ratio = cost["against"][BASELINE][OURS]
  number = f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})"
  return _row(bar, "", "", number, ratio["median"] <= MOST_COST)
