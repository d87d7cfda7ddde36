"""OUT/report.html: one self-contained page, no network, no script."""

import collections
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calince_jax.cleaning.examine import Examined
from calince_jax.cleaning.outputs import UNKNOWN, warnings
from calince_jax.cleaning.pairs import Pairs
from calince_jax.evals import calibration_metrics
from calince_jax.evals.report import charts
from calince_jax.evals.report.page import templates

SHARES = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the pairs that are kept
MOST_ROWS = 12  # of a table
SMALLEST_PART = 10  # pairs of a group that is listed


def render(
  title: str,
  pairs: Pairs,
  examined: Examined,
  facts: Sequence[tuple[str, str]],
  worst: Sequence[int],
  pictures: Sequence[str],
) -> str:
  """The page as one string; what comes from data is escaped by jinja2.

  Args:
    title: of the page.
    pairs, examined: what was found of which pairs.
    facts: label and value, for the header.
    worst: numbers of the pairs that are shown, worst first.
    pictures: of their clips, base64 WebP or "".
  """
  confidence = examined.posterior.confidence
  known = pairs.matched != UNKNOWN
  rows = calibration_metrics.reliability(
    confidence[known], pairs.matched[known] == 1
  )
  environment = templates(Path(__file__).parent)
  return environment.get_template("page.html").render(
    title=title,
    facts=facts,
    cards=_cards(pairs, examined),
    warnings=warnings(examined),
    histogram=_histogram(examined),
    reliability=known.any()
    and charts.reliability_chart(
      rows, description="Share of right pairs over P(fits)"
    ),
    filtering=_filtering(pairs, confidence),
    parts=_parts(pairs, confidence),
    worst=[
      {
        "id": pairs.clips[pairs.clip[i]].id,
        "text": pairs.texts[i],
        "confidence": float(confidence[i]),
        "matched": None
        if pairs.matched[i] == UNKNOWN
        else int(pairs.matched[i]),
        "better": pairs.texts[examined.better[i]]
        if examined.better[i] >= 0
        else "",
        "picture": picture,
      }
      for i, picture in zip(worst, pictures, strict=True)
    ],
  )


def _cards(pairs, examined):
  posterior = examined.posterior
  low, high = round(100 * posterior.low), round(100 * posterior.high)
  cards = [
    {
      "label": "captions that do not fit",
      "value": f"{100 * posterior.noise_rate:.0f} %",
      "note": f"{low} to {high} %, 95 % interval",
    },
    {
      "label": "given caption scores higher than another one",
      "value": f"{100 * examined.separation:.0f} %",
      "note": "chance 50 %",
    },
    {
      "label": "P(fits) of the nearest other caption",
      "value": f"{examined.near:.2f}",
      "note": f"any other caption {examined.random:.2f}",
    },
  ]
  truth = calibration_metrics.truth_metrics(
    pairs.matched, posterior.confidence, {"auc": examined.score}
  )
  if "auc" in truth:
    cards.append(
      {
        "label": "AUC against the known truth",
        "value": f"{truth['auc']:.2f}",
        "note": f"chance 0.50; ECE {truth['ece']:.2f}; truly"
        f" {100 * truth['noise_rate_true']:.0f} % wrong",
      }
    )
  return cards


def _histogram(examined):
  counts = dict(examined.histogram)
  edges = counts.pop("edges")
  return charts.histogram_chart(
    edges,
    {"unknown": counts["given"], "mismatched": counts["negatives"]},
    description="Histogram of the scores of given captions (unknown) and of"
    " other captions (mismatched)",
  )


def _filtering(pairs, confidence):
  order = np.argsort(-confidence, kind="stable")
  right = np.cumsum(confidence[order], dtype=np.float64)
  total = right[-1]
  rows = []
  for share in SHARES:
    count = max(1, round(share * len(order)))
    rows.append(
      [
        f"keep {100 * share:.0f} %",
        f"{confidence[order[count - 1]]:.2f}",
        f"{100 * right[count - 1] / count:.1f} %",
        f"{total - right[count - 1]:,.0f}",
        f"{count - right[count - 1]:,.0f}",
      ]
    )
  return {
    "title": "What filtering would cost",
    "columns": [
      "filter",
      "least P(fits)",
      "expected precision",
      "right pairs lost",
      "wrong pairs kept",
    ],
    "rows": rows,
  }


def _parts(pairs, confidence):
  clips = [pairs.clips[i] for i in pairs.clip]
  lengths = [len(text.split()) for text in pairs.texts]
  kinds = (
    ("By group", [clip.group for clip in clips]),
    ("By folder", [str(Path(clip.video).parent) for clip in clips]),
    ("By label", [clip.label for clip in clips]),
    ("By length of the caption, in words", [_length(n) for n in lengths]),
  )
  parts = []
  for title, names in kinds:
    rows = _by(names, confidence)
    if len(rows) > 1:
      parts.append(
        {
          "title": title,
          "note": "",
          "columns": ["", "pairs", "do not fit, expected"],
          "rows": rows,
        }
      )
  repeated = collections.Counter(text.strip().lower() for text in pairs.texts)
  common = [(t, n) for t, n in repeated.most_common(MOST_ROWS) if n > 1]
  if common:
    extra = sum(n - 1 for n in repeated.values())
    parts.append(
      {
        "title": "Captions that are repeated",
        "note": f"{extra:,} captions are those of an earlier pair, letter case"
        " aside. They are not counted as mismatches of each other.",
        "columns": ["caption", "pairs"],
        "rows": [[text[:120], f"{n:,}"] for text, n in common],
      }
    )
  return parts


def _by(names, confidence):
  """The parts with the largest expected share of wrong pairs first."""
  sums, counts = collections.Counter(), collections.Counter()
  for name, value in zip(names, confidence, strict=True):
    sums[name] += float(value)
    counts[name] += 1
  large = [name for name in counts if name and counts[name] >= SMALLEST_PART]
  large.sort(key=lambda name: (sums[name] / counts[name], name))
  return [
    [
      name[:80],
      f"{counts[name]:,}",
      f"{100 - 100 * sums[name] / counts[name]:.0f} %",
    ]
    for name in large[:MOST_ROWS]
  ]


def _length(words):
  for most in (2, 5, 10, 20, 50):
    if words <= most:
      return f"up to {most}"
  return "more than 50"
