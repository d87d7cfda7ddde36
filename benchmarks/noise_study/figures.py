"""The figures of the noise study, as SVG; equal summaries give equal files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.noise_study.bars import MAIN_RATE, OURS, PLAIN
from benchmarks.noise_study.runs import condition_name
from benchmarks.noise_study.statistics import BASELINE, CEILING, CONFIDENCE

# Okabe and Ito's colours, which the colour-blind can tell apart; shapes and
# dashes say the same again.
STYLES = {
  PLAIN: {"color": "#E69F00", "marker": "s", "linestyle": ":"},
  BASELINE: {"color": "#0072B2", "marker": "^", "linestyle": "--"},
  OURS: {"color": "#D55E00", "marker": "o", "linestyle": "-"},
  CEILING: {"color": "#555555", "marker": "D", "linestyle": "-."},
}
OTHERS = {"color": "black", "marker": "o"}
SETTINGS = {
  "svg.hashsalt": "noise_study",
  "svg.fonttype": "none",
  "font.family": "sans-serif",
  "font.size": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.color": "#dddddd",
  "axes.axisbelow": True,
  "figure.constrained_layout.use": True,
}
RECALL = "R@1 at the end, mean of both ways, %"

Summary = Mapping[str, Any]


def draw(summary: Summary, folder: Path) -> list[Path]:
  """Writes the figures that the summary has data for; returns their paths."""
  folder.mkdir(parents=True, exist_ok=True)
  figures = {
    "rates": rates_figure,
    "score": score_figure,
    "methods": methods_figure,
  }
  paths = []
  with matplotlib.rc_context(SETTINGS):
    for name, make in figures.items():
      path = folder / f"{summary['study']['name']}_{name}.svg"
      make(summary).savefig(path, metadata={"Date": None})
      paths.append(path)
  return paths


def interval_of_mean(found: Mapping[str, Any]) -> float:
  """Half the width of the 95 % t-interval of a mean over seeds; 0 of one."""
  n = found["seeds"]
  if n < 2:
    return 0.0
  t = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
  return float(t * found["sd"] / np.sqrt(n))


def rates_figure(summary: Summary) -> Figure:
  """R@1 at the end against the noise rate, of the main methods."""
  figure = Figure(figsize=(6.4, 3.4))
  axes = figure.subplots()
  quality = summary["quality"]
  rates = [
    r for r in summary["study"]["noise_rates"] if condition_name(r) in quality
  ]
  for i, (method, style) in enumerate(STYLES.items()):
    found = [
      (rate, quality[condition_name(rate)][method]["end"]["R@1"])
      for rate in rates
      if method in quality[condition_name(rate)]
    ]
    if not found:
      continue
    x, y = zip(*found, strict=True)
    axes.errorbar(
      np.array(x) + 0.006 * (i - 1.5),  # the bars stand side by side
      [v["mean"] for v in y],
      yerr=[interval_of_mean(v) for v in y],
      label=method,
      capsize=3,
      **style,
    )
  chance = summary["data"]["chance"]["t2v_R@1"]
  axes.axhline(chance, color="#999999", linewidth=0.8, label="chance")
  axes.set(xlabel="share of wrong captions", ylabel=RECALL, xticks=rates)
  axes.set_ylim(bottom=0)
  figure.legend(loc="outside right upper", frameon=False)
  return figure


def score_figure(summary: Summary) -> Figure:
  """AUC and ECE along training at 0.4: the mean, and least to greatest."""
  figure = Figure(figsize=(9.2, 3.2))
  panels = figure.subplots(1, 2)
  curves = _at_main_rate(summary, "curves")
  for axes, name, label in zip(
    panels,
    ("auc", "ece"),
    ("AUC of the score", "ECE of the confidence"),
    strict=True,
  ):
    for method, style in STYLES.items():
      if method not in curves or name not in curves[method]:
        continue
      points = curves[method][name]
      x = [point["step"] for point in points]
      axes.plot(
        x,
        [point["mean"] for point in points],
        label=method,
        markevery=max(len(x) // 8, 1),
        markersize=4,
        **style,
      )
      axes.fill_between(
        x,
        [point["min"] for point in points],
        [point["max"] for point in points],
        color=style["color"],
        alpha=0.15,
        linewidth=0,
      )
    axes.set(xlabel="step", ylabel=label)
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside right upper", frameon=False)
  return figure


def methods_figure(summary: Summary) -> Figure:
  """R@1 at the end of every method at 0.4, in the order of the table."""
  quality = _at_main_rate(summary, "quality")
  methods = [m for m in summary["study"]["methods"] if m in quality]
  styles = dict.fromkeys(methods, OTHERS) | STYLES
  figure = Figure(figsize=(6.4, 1.2 + 0.27 * len(methods)))
  axes = figure.subplots()
  for i, method in enumerate(methods):
    found = quality[method]["end"]["R@1"]
    axes.errorbar(
      found["mean"],
      i,
      xerr=interval_of_mean(found),
      capsize=3,
      color=styles[method]["color"],
      marker=styles[method]["marker"],
      markersize=5,
    )
  chance = summary["data"]["chance"]["t2v_R@1"]
  axes.axvline(chance, color="#999999", linewidth=0.8)
  axes.set(yticks=range(len(methods)), yticklabels=methods)
  axes.set(xlabel=f"{RECALL}, at a noise rate of {MAIN_RATE:g}")
  axes.set_xlim(left=0)
  axes.invert_yaxis()
  return figure


def _at_main_rate(summary, part):
  rate = condition_name(MAIN_RATE)
  if rate not in summary[part]:
    return {}
  return summary[part][rate]
