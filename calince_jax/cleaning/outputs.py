"""What clean writes beside the page: tables of the pairs."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from calince_jax.cleaning.examine import Examined
from calince_jax.cleaning.pairs import Pairs
from calince_jax.errors import UserError
from calince_jax.evals.results import no_formula
from calince_jax.files import atomic_file, write_atomic

UNKNOWN = -1
FEW_PAIRS = 500
# Below this share of (given, other caption) in which the given one scores
# higher, nothing is said of single pairs.
LEAST_SEPARATION = 0.55
# By how much P(fits) of nearly right captions may lie above that of any others.
NEAR_MISS = 0.15
MANIFEST_COLUMNS = (
  "video", "text", "start", "end", "id", "label", "split", "group", "matched",
)  # fmt: skip


def pair_table(pairs: Pairs, examined: Examined, fold: np.ndarray) -> pa.Table:
  """One row for each pair, in the source's order.

  Columns: `id` and `video` of the clip, `text`, `confidence` = P(fits),
  `score`, `fold`, `better_text` and `better_score` (the caption of the set that
  fits this clip best, where that is another one), `group`, `split`, `matched`
  (null where it is not known).
  """
  clips = [pairs.clips[i] for i in pairs.clip]
  better = examined.better
  return pa.table(
    {
      "id": [clip.id for clip in clips],
      "video": [clip.video for clip in clips],
      "text": list(pairs.texts),
      "confidence": pa.array(examined.posterior.confidence, pa.float32()),
      "score": pa.array(examined.score, pa.float32()),
      "fold": pa.array(fold, pa.int32()),
      "better_text": [None if j < 0 else pairs.texts[j] for j in better],
      "better_score": pa.array(
        [None if np.isnan(s) else float(s) for s in examined.better_score],
        pa.float32(),
      ),
      "group": [clip.group for clip in clips],
      "split": [clip.split for clip in clips],
      "matched": pa.array(
        [None if m == UNKNOWN else int(m) for m in pairs.matched], pa.int8()
      ),
    }
  )


def write_tables(out: Path, table: pa.Table) -> None:
  """Writes OUT/pairs.parquet and OUT/pairs.csv."""
  with atomic_file(out / "pairs.parquet") as partial:
    pq.write_table(table, partial)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(table.column_names)
  for row in table.to_pylist():
    writer.writerow([_cell(value) for value in row.values()])
  write_atomic(out / "pairs.csv", text.getvalue())


def _cell(value):
  if value is None:
    return ""
  if isinstance(value, float):
    return f"{value:.6g}"
  return no_formula(value) if isinstance(value, str) else value


def kept_rows(
  confidence: np.ndarray,
  *,
  keep: float | None,
  keep_precision: float | None,
) -> np.ndarray:
  """Which pairs stay, bool [P].

  Args:
    confidence: float [P], P(fits).
    keep: this share of the pairs, the best; or
    keep_precision: as many of the best as still have this mean P(fits): the
      share of right pairs that is expected among them.

  Raises:
    UserError: no pair reaches the precision.
  """
  order = np.argsort(-confidence, kind="stable")
  if keep is not None:
    count = round(keep * len(order))
  else:
    expected = np.cumsum(confidence[order], dtype=np.float64) / np.arange(
      1, len(order) + 1
    )
    reached = np.flatnonzero(expected >= keep_precision)
    if not reached.size:
      raise UserError(
        f"no pair is that sure: the best has P(fits) = {expected[0]:.3f}; give"
        f" a --keep_precision below it, or --keep=SHARE"
      )
    count = reached[-1] + 1
  kept = np.zeros(len(order), bool)
  kept[order[:count]] = True
  return kept


def write_manifest(
  path: Path, pairs: Pairs, confidence: np.ndarray, kept: np.ndarray
) -> None:
  """Writes the kept pairs as a manifest, with a last column `confidence`."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow([*MANIFEST_COLUMNS, "confidence"])
  for i in np.flatnonzero(kept):
    clip = pairs.clips[pairs.clip[i]]
    times = ["" if t is None else repr(t) for t in (clip.start, clip.end)]
    matched = "" if pairs.matched[i] == UNKNOWN else int(pairs.matched[i])
    writer.writerow(
      [
        clip.video,
        pairs.texts[i],
        *times,
        clip.id,
        clip.label,
        clip.split,
        clip.group,
        matched,
        f"{confidence[i]:.4f}",
      ]
    )
  write_atomic(path, text.getvalue())


def summary(
  confidence: np.ndarray, examined: Examined, matched: np.ndarray
) -> Sequence[str]:
  """The lines that the command ends with."""
  posterior, P = examined.posterior, len(confidence)
  low, high = round(100 * posterior.low), round(100 * posterior.high)
  lines = [
    f"about {100 * posterior.noise_rate:.0f} % ({low} to {high}) of {P:,}"
    " captions do not fit"
  ]
  count = min(200, max(1, P // 10))
  worst = np.argsort(confidence, kind="stable")[:count]
  wrong = 1 - confidence[worst].mean()
  lines.append(
    f"the {count} worst are {100 * wrong:.0f} % wrong, if the calibration holds"
  )
  known = matched[worst] != UNKNOWN
  if known.any():
    true = (matched[worst][known] == 0).mean()
    lines[-1] += (
      f" ({100 * true:.0f} % of the {known.sum()} whose truth is known)"
    )
  return lines + warnings(examined)


def warnings(examined: Examined) -> list[str]:
  """What the reader must know before trusting the numbers; often nothing."""
  found = []
  P = len(examined.score)
  if P < FEW_PAIRS:
    found.append(
      f"{P} pairs are few: the scorers learn little from them, and the interval"
      " is wide"
    )
  if examined.separation < LEAST_SEPARATION:
    found.append(
      "the features hardly tell given captions from others"
      f" ({100 * examined.separation:.0f} % of comparisons, chance is 50):"
      " nothing can be said of single pairs; use features of a model that"
      " knows these videos"
    )
  if examined.near - examined.random > NEAR_MISS:
    found.append(
      "captions that are nearly right pass: with the nearest other caption a"
      f" clip gets P(fits) {examined.near:.2f} on average, with any other"
      f" {examined.random:.2f}. Mismatches of that kind are not counted in the"
      " noise rate, and not found"
    )
  return found
