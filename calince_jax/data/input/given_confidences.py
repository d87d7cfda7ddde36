"""The confidences that a run starts from: a table by clip and caption.

`python -m calince_jax.clean` writes such a table as OUT/pairs.parquet.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calince_jax.data.problems import CorruptRecord
from calince_jax.errors import UserError

if TYPE_CHECKING:  # slow to import
  from calince_jax.data.input.label_noise import MismatchedReader
  from calince_jax.data.records.reader import ClipReader

COLUMNS = ("id", "text", "confidence")
# Rows of the same clip and caption may differ by this much, of rounding.
TOLERANCE = 1e-3


def of_pairs(
  path: str,
  readers: "Sequence[ClipReader | MismatchedReader]",
  pair_offsets: Sequence[int],
  num_pairs: int,
) -> np.ndarray:
  """The confidence of each pair that the readers hold.

  A pair is found by the id of its clip and the caption that training sees, so
  captions that were exchanged (label_noise.py) need rows of their own. Reads
  what each clip is once, and no frame.

  Args:
    path: of a Parquet file with the columns `id`, `text` and `confidence`.
    readers: of the data sets of a run.
    pair_offsets: added to each data set's pair indices.
    num_pairs: every pair index is below it.

  Returns:
    float32 [num_pairs] in [0, 1]; 0 for pairs of no reader, and for those of
    corrupt records, whose samples take another record.

  Raises:
    UserError: the file cannot be used, or lacks a pair.
  """
  known = read(path)
  confidences = np.zeros(num_pairs, np.float32)
  count = missing = 0
  first = None
  for reader, offset in zip(readers, pair_offsets, strict=True):
    for index in range(len(reader)):
      try:
        record, _ = reader.clip(index)
      except CorruptRecord:
        continue
      for pair, text in zip(
        record["pair_indices"], record["texts"], strict=True
      ):
        count += 1
        value = known.get((record["id"], text))
        if value is None:
          missing += 1
          first = first or (record["id"], text)
        else:
          confidences[offset + pair] = value
  if missing:
    clip, text = first
    raise UserError(
      f"config.data.confidences={path} has no row for {missing:,} of {count:,}"
      f" training pairs; the first is clip {clip!r} with the caption"
      f" {text[:80]!r}; run python -m calince_jax.clean on the clips and"
      " captions that training reads (config.data.mismatch changes captions)"
    )
  return confidences


def read(path: str) -> dict[tuple[str, str], float]:
  """{(id, text): confidence} of a Parquet file.

  Raises:
    UserError: it is no such file, a confidence is not in [0, 1], or two rows
      contradict each other.
  """
  import pyarrow as pa
  import pyarrow.parquet as pq

  where = f"config.data.confidences={path}"
  if not Path(path).is_file():
    raise UserError(
      f"{where} is no file; name the pairs.parquet that python -m"
      " calince_jax.clean wrote"
    )
  try:
    names = pq.read_schema(path).names
    lacking = [name for name in COLUMNS if name not in names]
    if lacking:
      raise UserError(f"{where} has no column {lacking[0]!r}; it has {names}")
    table = pq.read_table(path, columns=list(COLUMNS))
    confidence = np.asarray(table["confidence"].cast(pa.float32()), np.float32)
  except (pa.ArrowException, OSError) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{where} cannot be read ({reason})") from None
  bad = np.flatnonzero(~((confidence >= 0) & (confidence <= 1)))
  if bad.size:
    raise UserError(
      f"{where} row {bad[0] + 1}: confidence={confidence[bad[0]]:g} is not in"
      f" [0, 1]; {bad.size:,} of {len(confidence):,} rows are like that"
    )
  ids, texts = table["id"].to_pylist(), table["text"].to_pylist()
  known: dict[tuple[str, str], float] = {}
  for row, (clip, text, value) in enumerate(
    zip(ids, texts, confidence.tolist(), strict=True), start=1
  ):
    if abs(known.setdefault((clip, text), value) - value) > TOLERANCE:
      raise UserError(
        f"{where} row {row}: clip {clip!r} with the caption {text[:80]!r} has"
        f" confidence {value:g} here and {known[clip, text]:g} before"
      )
  return known
