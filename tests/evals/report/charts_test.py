import math
import re
from xml.etree import ElementTree

import pytest

from calince_jax.evals.report import charts


def shapes(markup, tag):
  return [e.attrib for e in ElementTree.fromstring(markup).iter(tag)]


@pytest.mark.parametrize(
  ("low", "high", "want"),
  [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (0, 1490, [0, 500, 1000]),
    (3.9, 4.2, [3.9, 4.0, 4.1, 4.2]),
    (-2, 2, [-2, -1, 0, 1, 2]),
  ],
)
def test_ticks_are_round_and_inside(low, high, want):
  assert charts.ticks(low, high) == pytest.approx(want)


def test_a_line_goes_through_its_points_and_skips_what_is_not_finite():
  svg = charts.line_chart(
    [0, 10, 20, 30], [4.0, math.nan, 1.0, 0.0], description="loss"
  )
  (line,) = [p["d"] for p in shapes(svg, "path") if p["class"] == "line"]
  assert "nan" not in svg
  points = re.findall(r"([ML])([\d.]+) ([\d.]+)", line)
  assert [pen for pen, _, _ in points] == ["M", "M", "L"]
  xs, ys = [float(p[1]) for p in points], [float(p[2]) for p in points]
  assert xs[0] == charts.LEFT and xs[-1] == charts.WIDTH - charts.RIGHT
  assert ys == sorted(ys)  # the loss falls, so y in SVG rises


def test_a_baseline_is_inside_the_plot():
  svg = charts.line_chart(
    [0, 1], [1.0, 0.9], baseline=[4.0, 4.0], description="loss"
  )
  (dashed,) = [p["d"] for p in shapes(svg, "path") if p["class"] == "baseline"]
  y = float(dashed.split(" ")[1].split("L")[0])
  assert charts.TOP <= y < charts.HEIGHT - charts.BOTTOM


def test_long_curves_are_thinned_and_constant_ones_drawn():
  n = 10_000
  svg = charts.line_chart(range(n), [2.0] * n, description="constant")
  assert len(svg) < 20_000
  assert "nan" not in svg


def test_histogram_bars_are_shares_of_their_kind():
  svg = charts.histogram_chart(
    [0, 0.5, 1],
    {"matched": [1, 3], "mismatched": [20, 0], "unknown": [0, 0]},
    description="scores",
  )
  bars = shapes(svg, "rect")
  assert [b["class"] for b in bars] == 2 * ["matched"] + 2 * ["mismatched"]
  heights = [float(b["height"]) for b in bars]
  assert heights[1] == pytest.approx(3 * heights[0], rel=1e-2)
  assert heights[2] == pytest.approx(4 * heights[0], rel=1e-2)
  assert heights[3] == 0
  assert "unknown" not in svg


def test_reliability_dots_lie_where_the_rows_say():
  rows = [
    {"confidence": 0.0, "frequency": 0.0, "count": 10},
    {"confidence": 0.5, "frequency": 1.0, "count": 40},
  ]
  first, second = shapes(
    charts.reliability_chart(rows, description="reliability"), "circle"
  )
  assert float(second["cx"]) - float(first["cx"]) == pytest.approx(135)
  assert float(first["cy"]) - float(second["cy"]) == pytest.approx(270)
  assert float(second["r"]) > float(first["r"])


def test_descriptions_are_escaped():
  svg = charts.line_chart([0, 1], [0, 1], description='"><script>')
  assert "<script>" not in svg
  assert ElementTree.fromstring(svg).attrib["aria-label"] == '"><script>'
