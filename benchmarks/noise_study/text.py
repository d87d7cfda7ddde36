"""The noise study's section of docs/results.md, from its summary.json."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.noise_study.bars import interval
from benchmarks.noise_study.runs import AT_THE_END, LEARNS, QUALITIES
from benchmarks.noise_study.statistics import BASELINE, CEILING, POINTS
from calince_jax.errors import UserError

SUMMARY = "summary.json"
FIGURES = {
  "rates": "R@1 against the share of wrong captions",
  "score": "AUC and ECE of the score along training",
  "methods": "R@1 of every method at a noise rate of 0.4",
}
LEGEND = (
  "On test, in percent: mean over seeds ± standard deviation. R@k alone is the"
  " mean of both directions; `minus` is the paired difference of R@1 with its"
  " 95 % t-interval; `closes` is the share of the way from co-training to the"
  " oracle, with the 95 % interval of a bootstrap over seeds. Bold: the best"
  " mean; the oracle, which knows the wrong pairs, does not compete."
)
TASKS_LEGEND = (
  "R@1 and R@10 between text and video, mean of both directions; recognition is"
  " top-1 of a linear probe on frozen features; video R@1 counts queries whose"
  " nearest training clip is of their class. In percent, mean over seeds ±"
  f" standard deviation; in brackets the paired difference from `{BASELINE}`"
  f" with its 95 % t-interval, and the share of the way to `{CEILING}`."
)
LEARNING_LEGEND = (
  "Stuck: runs whose in-batch accuracy ends below"
  f" {LEARNS} times chance. Take-off: the first step at which it is above, mean"
  " over the runs that do (least to greatest). Collapse: the mean cosine of two"
  " different clips or texts at the end, the greater of both; 1 is one point."
  " Covered: runs whose interval of the noise rate holds the truth."
)
HEADINGS = {
  "end": "At the end of training",
  "selected": "At the evaluation with the best mean R@1 on val",
}
MOST_NAMED = 12  # runs that are missing
SCORE_COLUMNS = {
  "AUC first": "auc_first",
  "best": "auc_best",
  "end": "auc_end",
  "largest fall": "auc_fall",
  "ECE first": "ece_first",
  "ECE end": "ece_end",
  "noise rate estimated": "noise_rate_estimate",
  "weight of right pairs": "weight_matched",
  "of wrong pairs": "weight_mismatched",
  "effective share": "effective_sample_share",
}

Summary = Mapping[str, Any]


def section(out: Path) -> str:
  """All of it in Markdown.

  Raises:
    UserError: there is no OUT/summary.json.
  """
  path = out / SUMMARY
  if not path.exists():
    raise UserError(
      f"{path} is missing; run python -m benchmarks.noise_study --collect"
    )
  summary = json.loads(path.read_text())
  parts = [_head(summary), "### What it had to show", _bars(summary["bars"])]
  prefix = summary["study"]["name"]
  parts += [
    f"![{text}](figures/{prefix}_{name}.svg)" for name, text in FIGURES.items()
  ]
  parts += ["### All tasks at the end of training", TASKS_LEGEND]
  for rate in _rates(summary):
    parts += [f"Noise rate {rate}:", _tasks(summary, rate)]
  parts += ["### Whether learning began", LEARNING_LEGEND, _learning(summary)]
  for point in POINTS:
    parts.append(f"### {HEADINGS[point]}")
    if point == POINTS[0]:
      parts.append(LEGEND)
    for rate in _rates(summary):
      parts += [f"Noise rate {rate}:", _quality(summary, rate, point)]
  parts += ["### The score along training", _score(summary)]
  parts += ["### Cost of a step", _cost(summary)]
  return "\n\n".join(parts)


def _rates(summary):
  conditions = summary["study"]["conditions"]
  return [name for name in conditions if name in summary["quality"]]


def _methods(summary, part):
  return [m for m in summary["study"]["methods"] if m in part]


def _head(summary):
  study, runs, data = summary["study"], summary["runs"], summary["data"]
  clips = ", ".join(
    f"{split['clips']} {name}" for name, split in data["splits"].items()
  )
  chance = ", ".join(
    f"{name} {data['chance'][name]:.2f}"
    for name in ("t2v_R@1", "t2v_R@5", "t2v_R@10")
  )
  lines = [
    f"{runs['finished']} of {runs['expected']} runs"
    f" ({len(study['methods'])} methods, noise rates"
    f" {', '.join(study['conditions'])},"
    f" {study['num_seeds']} seeds) are finished; clips: {clips}. Chance:"
    f" {chance}, and the same from video to text.",
  ]
  if runs["seconds"]:
    lines.append(
      f"The finished runs took {sum(runs['seconds']) / 3600:.1f} hours of one"
      f" core, {statistics.median(runs['seconds']) / 60:.1f} minutes each"
      " (median)."
    )
  if len(runs["missing"]) > MOST_NAMED:
    lines.append(
      "**What stands below is without the runs that have not been made.** These"
      f" are, with their number of seeds: {_made(summary)}."
    )
  elif runs["missing"]:
    lines.append(
      f"**{len(runs['missing'])} runs are missing**, and what stands below is"
      f" without them: {'; '.join(runs['missing'])}."
    )
  return "\n".join(lines)


def _made(summary):
  parts = []
  for rate in _rates(summary):
    part = summary["quality"][rate]
    seeds = [
      f"`{m}` {part[m]['end']['R@1']['seeds']}" for m in _methods(summary, part)
    ]
    parts.append(f"at {rate} {', '.join(seeds)}")
  return "; ".join(parts)


def _bars(bars):
  verdict = {True: "yes", False: "**no**"}
  judged = [bar for bar in bars if bar["met"] is not None]
  rows = [
    [
      bar["bar"],
      bar["noise_rate"],
      bar["when"],
      bar["number"],
      verdict[bar["met"]],
    ]
    for bar in judged
  ]
  text = table(["what", "noise rate", "when", "number", "met"], rows)
  if len(judged) < len(bars):
    more = len(bars) - len(judged)
    text += f"\n\n{more} more need runs that have not been made."
  return text


def _quality(summary, rate, point):
  """Mean +- standard deviation over seeds, on test; the best mean is bold."""
  part = summary["quality"][rate]
  methods = _methods(summary, part)
  judged = [method for method in methods if method != CEILING]
  best = {
    name: max((part[m][point][name]["mean"] for m in judged), default=None)
    for name in QUALITIES
  }
  rows = []
  for method in methods:
    mine = part[method][point]
    cells = {}
    for name in QUALITIES:
      sd = mine[name]["sd"]
      text = f"{mine[name]['mean']:.2f}"
      bold = method != CEILING and mine[name]["mean"] == best[name]
      text = f"**{text}**" if bold else text
      cells[name] = text if sd is None else f"{text} ± {sd:.2f}"
    found = mine["R@1"]["against_baseline"]
    known = method != BASELINE and found["difference"] is not None
    rows.append(
      [
        f"`{method}`",
        str(mine["R@1"]["seeds"]),
        cells.pop("R@1"),
        interval(found) if known else "",
        _share(summary, rate, method, point),
        *cells.values(),
      ]
    )
  names = [name.replace("_", " ") for name in QUALITIES[1:]]
  head = ["", "seeds", "R@1", f"minus `{BASELINE}`", "closes", *names]
  return table(head, rows)


def _share(summary, rate, method, point):
  shares = summary["closing"][rate]
  if method in (BASELINE, CEILING) or method not in shares:
    return ""
  if point not in shares[method]:
    return ""
  found = shares[method][point]
  text = f"{found['share']:.0f} %"
  if found["low"] is None:
    return text
  return f"{text} ({found['low']:.0f} to {found['high']:.0f})"


def _tasks(summary, rate):
  part = summary["tasks"][rate]
  methods = _methods(summary, part)
  names = [n for n in AT_THE_END if any(n in part[m] for m in methods)]
  chance = _chance(summary)
  rows = [["chance", *(f"{chance[name]:.2f}" for name in names)]]
  for method in methods:
    cells = []
    for name in names:
      if name not in part[method]:
        cells.append("")
        continue
      found = part[method][name]
      text = f"{found['mean']:.2f}"
      text += "" if found["sd"] is None else f" ± {found['sd']:.2f}"
      against = found["against_baseline"]
      if method != BASELINE and against["difference"] is not None:
        text += f" [{interval(against)}"
        closes = found["closing"]
        if closes and method != CEILING and rate != "0":
          text += f"; {closes['share']:.0f} %"
        text += "]"
      cells.append(text)
    rows.append([f"`{method}`", *cells])
  return table(["", *(name.replace("_", " ") for name in names)], rows)


def _chance(summary):
  """What random scores and guessing give, of AT_THE_END, in percent."""
  random = summary["data"]["chance"]
  recalls = {
    name: (random[f"t2v_{name}"] + random[f"v2t_{name}"]) / 2
    for name in ("R@1", "R@10")
  }
  return recalls | summary["task_chance"]


def _learning(summary):
  rows = []
  for rate in _rates(summary):
    part = summary["score"][rate]
    for method in _methods(summary, part):
      mine = part[method]
      if "stuck" not in mine:
        continue
      stuck, cells = mine["stuck"], ["", "", ""]
      if "take_off" in mine:
        x = mine["take_off"]
        cells[0] = f"{x['mean']:.0f} ({x['min']:.0f} to {x['max']:.0f})"
      if "collapse_end" in mine:
        cells[1] = f"{mine['collapse_end']['mean']:.3f}"
      if "noise_rate_covered" in mine:
        x = mine["noise_rate_covered"]
        cells[2] = _of(x)
      rows.append([rate, f"`{method}`", _of(stuck), *cells])
  if not rows:
    return "Not logged by these runs."
  head = ["noise rate", "", "stuck", "take-off", "collapse", "covered"]
  return table(head, rows)


def _of(found):
  return f"{found['mean'] * found['seeds']:.0f} of {found['seeds']}"


def _score(summary):
  """Means over seeds; without the methods that have no score."""
  rows = []
  for rate in _rates(summary):
    part = summary["score"][rate]
    for method in _methods(summary, part):
      mine = part[method]
      rows.append(
        [rate, f"`{method}`"]
        + [
          f"{mine[name]['mean']:.3f}" if name in mine else ""
          for name in SCORE_COLUMNS.values()
        ]
      )
  if not rows:
    return "No run has a score."
  return table(["noise rate", "", *SCORE_COLUMNS], rows)


def _cost(summary):
  cost = summary["cost"]
  if cost is None:
    return "Not measured: `python -m benchmarks.noise_study.cost` does it."
  rows = []
  for method, seconds in cost["seconds_per_step"].items():
    row = [f"`{method}`", f"{1e3 * statistics.median(seconds):.1f}"]
    for reference in cost["against"].values():
      r = reference[method] if reference else None
      row.append(
        f"{r['median']:.3f} ({r['min']:.3f} to {r['max']:.3f})" if r else ""
      )
    rows.append(row)
  head = ["", "ms a step", *(f"of `{name}`" for name in cost["against"])]
  rounds = len(next(iter(cost["seconds_per_step"].values())))
  return (
    f"{table(head, rows)}\n\nMedian ratio of {rounds} rounds in which the"
    f" methods took turns (least to greatest); {cost['cores']} cores."
  )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
