"""The report's charts as inline SVG: text stays text, colours come from CSS.

Each function returns markup whose labels are escaped. The classes it uses
(line, faint, baseline, matched, ...) are drawn by report.css, in light and in
dark. A chart has a description that a screen reader reads.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup

MOST_POINTS = 240  # longer curves are averaged over equal stretches
SMOOTH_FROM = 40  # points; shorter curves are drawn as they are
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 26


class Axes:
  """Maps data to the coordinates of one plot and draws ticks."""

  def __init__(
    self,
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    top: float = TOP,
    height: float = HEIGHT - TOP - BOTTOM,
    width: float = WIDTH - LEFT - RIGHT,
  ):
    """Args: the ranges of the data; where the plot lies, in SVG units."""
    self.x_range, self.y_range = _wide(*x), _wide(*y)
    self.top, self.height, self.width = top, height, width

  def x(self, value: float) -> float:
    low, high = self.x_range
    return round(LEFT + (value - low) / (high - low) * self.width, 2)

  def y(self, value: float) -> float:
    low, high = self.y_range
    return round(self.top + (high - value) / (high - low) * self.height, 2)

  def path(self, xs: Sequence[float], ys: Sequence[float], kind: str) -> Markup:
    """A line, with a gap where a value is not finite."""
    steps, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
      if math.isfinite(y):
        steps.append(f"{pen}{self.x(x)} {self.y(y)}")
      pen = "L" if math.isfinite(y) else "M"
    return Markup('<path class="{}" d="{}"/>').format(kind, "".join(steps))

  def x_ticks(self, label: str = "") -> Iterator[Markup]:
    """Numbers under the plot; a label takes the place of the last one."""
    bottom = self.top + self.height
    for tick in ticks(*self.x_range):
      if self.x(tick) < LEFT + self.width - 9 * len(label) or not label:
        yield _text(self.x(tick), bottom + 16, tick, "middle")
    yield _text(LEFT + self.width, bottom + 16, label, "end")

  def y_ticks(self, count: int = 4, percent: bool = False) -> Iterator[Markup]:
    """Numbers to the left of the plot, a thin line at each."""
    for tick in ticks(*self.y_range, count):
      y = self.y(tick)
      yield Markup('<path class="grid" d="M{} {}h{}"/>').format(
        LEFT, y, self.width
      )
      label = f"{number(100 * tick)} %" if percent else tick
      yield _text(LEFT - 6, y + 4, label, "end")


def line_chart(
  steps: Sequence[float],
  values: Sequence[float],
  *,
  description: str,
  baseline: Sequence[float] | None = None,
) -> Markup:
  """A curve over training steps.

  Args:
    steps: [N], rising.
    values: [N]; values that are not finite leave a gap.
    description: read by screen readers.
    baseline: [N], a dashed line to compare with.
  """
  steps, values, baseline = (
    None if column is None else _thin(np.asarray(column, np.float64))
    for column in (steps, values, baseline)
  )
  shown = np.concatenate([values, [] if baseline is None else baseline])
  shown = shown[np.isfinite(shown)]
  low, high = (shown.min(), shown.max()) if len(shown) else (0.0, 1.0)
  margin = 0.06 * (high - low)
  low = 0.0 if low >= 0 and low - margin < 0 else low - margin
  axes = Axes((steps[0], steps[-1]), (low, high + margin))
  parts = [*axes.y_ticks(), *axes.x_ticks("step")]
  if baseline is not None:
    parts.append(axes.path(steps, baseline, "baseline"))
  if len(values) >= SMOOTH_FROM:
    parts.append(axes.path(steps, values, "line faint"))
    values = _smooth(values)
  parts.append(axes.path(steps, values, "line"))
  return _svg(parts, description)


def histogram_chart(
  edges: Sequence[float], counts: dict[str, Sequence[int]], *, description: str
) -> Markup:
  """One row of bars for each kind of pair, all over the same axes.

  Args:
    edges: [B + 1], rising.
    counts: for each kind [B] counts; a bar's height is its share of its kind.
      Kinds without any pair are left out.
    description: read by screen readers.
  """
  shares = {
    kind: np.asarray(count) / sum(count)
    for kind, count in counts.items()
    if sum(count)
  }
  high = max((share.max() for share in shares.values()), default=1.0)
  parts, row = [], 136
  for i, (kind, share) in enumerate(shares.items()):
    axes = Axes(
      (edges[0], edges[-1]), (0, high), top=22 + i * row, height=row - 26
    )
    parts += axes.y_ticks(count=2, percent=True)
    for left, right, s in zip(edges[:-1], edges[1:], share, strict=True):
      parts.append(
        Markup(
          '<rect class="{}" x="{}" y="{}" width="{:.2f}" height="{:.2f}">'
          "<title>{}</title></rect>"
        ).format(
          kind,
          axes.x(left) + 0.75,
          axes.y(s),
          axes.x(right) - axes.x(left) - 1.5,
          axes.y(0) - axes.y(s),
          f"{left:.2f} to {right:.2f}: {100 * s:.1f} % of the {kind} pairs",
        )
      )
    label = f"{kind}, {sum(counts[kind]):,} pairs"
    parts.append(_text(LEFT, axes.top - 8, label, "start", f"name {kind}"))
  if shares:
    parts += axes.x_ticks()
  return _svg(parts, description, height=22 + row * len(shares) + 18)


def bar_chart(values: np.ndarray, *, unit: str, bars: int) -> Markup:
  """How often values occur, up to their 99.5th percentile.

  Args:
    values: [N], at least one, not negative.
    unit: of a value.
    bars: at most so many; a bar of whole numbers holds as many as the others.
  """
  high = float(np.quantile(values, 0.995, method="higher"))
  whole = np.issubdtype(values.dtype, np.integer)
  if whole:
    width = math.ceil((high + 1) / bars)
    edges = np.arange(0, high + 1 + width, width)
  else:
    edges = np.linspace(0, high or 1.0, bars + 1)
  counts, _ = np.histogram(values[values <= high], edges)
  axes = Axes((0, edges[-1]), (0, counts.max()))
  parts = [*axes.y_ticks(), *axes.x_ticks(unit)]
  for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
    shown = f"{left:.4g} to {right - whole:.4g} {unit}: {count:,}"
    parts.append(
      Markup(
        '<rect class="matched" x="{}" y="{}" width="{:.2f}" height="{:.2f}">'
        "<title>{}</title></rect>"
      ).format(
        axes.x(left) + 0.5,
        axes.y(count),
        max(axes.x(right) - axes.x(left) - 1, 0.5),
        axes.y(0) - axes.y(count),
        shown,
      )
    )
  description = (
    f"Histogram of {len(values):,} values in {unit}: from {values.min():.4g} to"
    f" {values.max():.4g}, median {np.median(values):.4g}"
  )
  return _svg(parts, description)


def reliability_chart(rows: Sequence[dict], *, description: str) -> Markup:
  """How often pairs of a confidence are matched; the diagonal is ideal.

  Args:
    rows: {"confidence", "frequency", "count"} of each bin, rising.
    description: read by screen readers.
  """
  axes = Axes((0, 1), (0, 1), height=270, width=270)
  parts = [*axes.y_ticks(), *axes.x_ticks()]
  parts.append(axes.path((0, 1), (0, 1), "baseline"))
  xs = [row["confidence"] for row in rows]
  ys = [row["frequency"] for row in rows]
  parts.append(axes.path(xs, ys, "line faint"))
  most = max((row["count"] for row in rows), default=1)
  for row in rows:
    parts.append(
      Markup(
        '<circle class="dot" cx="{}" cy="{}" r="{:.1f}">'
        "<title>{}</title></circle>"
      ).format(
        axes.x(row["confidence"]),
        axes.y(row["frequency"]),
        3 + 8 * math.sqrt(row["count"] / most),
        f"confidence {row['confidence']:.2f}: "
        f"{100 * row['frequency']:.0f} % of {row['count']:,} pairs are matched",
      )
    )
  width = LEFT + 270 + RIGHT
  return _svg(parts, description, width=width, height=TOP + 270 + BOTTOM)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
  """About `count` round numbers in [low, high]: 1, 2 or 5 times 10^n apart."""
  rough = (high - low) / count
  power = 10 ** math.floor(math.log10(rough))
  step = min(
    (m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough))
  )
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
  """A short label: 12k, 0.25, 3, 1e-05."""
  if abs(value) >= 10_000:
    return f"{value / 1000:g}k"
  return f"{value:.4g}"


def _wide(low: float, high: float) -> tuple[float, float]:
  """The range, or one around it where it has no width."""
  if high - low > 1e-9 * max(abs(low), abs(high)):
    return float(low), float(high)
  half = max(abs(low) / 10, 0.5)
  return low - half, high + half


def _thin(column: np.ndarray) -> np.ndarray:
  """Means over at most MOST_POINTS equal stretches."""
  if len(column) <= MOST_POINTS:
    return column
  return np.array([part.mean() for part in np.array_split(column, MOST_POINTS)])


def _smooth(values: np.ndarray) -> np.ndarray:
  """Means over a tenth of the curve around each point, less at the ends."""
  last, smooth = len(values) - 1, []
  for i in range(len(values)):
    half = min(len(values) // 20, i, last - i)
    window = values[i - half : i + half + 1]
    window = window[np.isfinite(window)]
    smooth.append(window.mean() if len(window) else math.nan)
  return np.array(smooth)


def _text(
  x: float, y: float, label: object, anchor: str, kind: str = "tick"
) -> Markup:
  if isinstance(label, float):
    label = number(label)
  return Markup(
    '<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>'
  ).format(kind, x, y, anchor, label)


def _svg(
  parts: Sequence[Markup],
  description: str,
  *,
  width: float = WIDTH,
  height: float = HEIGHT,
) -> Markup:
  return Markup(
    '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
  ).format(width, height, description, Markup("").join(parts))
