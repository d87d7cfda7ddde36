"""Frozen features of clips and captions, from files of any model.

A set of features is one of

    NAME.npy       float [R, D] or [R, F, D] (F frames, which are averaged), and
    NAME.keys.jsonl  R lines, each a JSON string: a clip's id, or a caption
    NAME.parquet   columns `key` (string) and `features` (list of D floats)

Files of rows are mapped, not read: they may be larger than the memory.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from calince_jax.errors import UserError

FORMS = "NAME.npy with NAME.keys.jsonl beside it, or NAME.parquet"


@dataclasses.dataclass(frozen=True)
class Features:
  """Rows of a file, picked by key.

  Attributes:
    path: of the file.
    rows: float [R, D] or [R, F, D], maybe a memory map.
    index: int64 [N], the row of each of the wanted keys.
  """

  path: Path
  rows: np.ndarray
  index: np.ndarray

  @property
  def width(self) -> int:
    """D."""
    return self.rows.shape[-1]

  def block(self, start: int, stop: int) -> np.ndarray:
    """The features of the wanted keys start to stop, float32 [n, D].

    Raises:
      UserError: a value is not finite.
    """
    rows = np.asarray(self.rows[self.index[start:stop]], np.float32)
    rows = rows.mean(axis=1) if rows.ndim == 3 else rows
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
      raise UserError(
        f"{self.path} row {self.index[start + bad[0]]} holds NaN or infinity"
      )
    return rows


def open_features(path: str | Path, keys: Sequence[str]) -> Features:
  """Opens a file of features.

  Args:
    path: *.npy or *.parquet, see the module.
    keys: N of them, whose features are wanted, maybe repeated.

  Raises:
    UserError: the file cannot be read, or lacks some of the keys.
  """
  path = Path(path)
  if path.suffix == ".npy":
    rows, known = _open_npy(path)
  elif path.suffix == ".parquet":
    rows, known = _open_parquet(path)
  else:
    raise UserError(f"{path}: features are {FORMS}")
  place = {key: i for i, key in enumerate(known)}
  index = np.array([place.get(key, -1) for key in keys], np.int64)
  missing = np.flatnonzero(index < 0)
  if missing.size:
    raise UserError(
      f"{path} lacks the features of {missing.size:,} of {len(keys):,} keys;"
      f" the first one is {keys[missing[0]]!r}, and the file's own first key is"
      f" {known[0]!r}"
    )
  return Features(path, rows, index)


def _open_npy(path: Path) -> tuple[np.ndarray, list[str]]:
  names = path.with_suffix(".keys.jsonl")
  try:
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    with open(names, encoding="utf-8") as file:
      keys = [json.loads(line) for line in file]
  except OSError as error:
    raise UserError(
      f"{error.filename or path} cannot be read: {error.strerror or error};"
      f" features are {FORMS}"
    ) from None
  except ValueError as error:
    raise UserError(f"{path} or {names} cannot be read: {error}") from None
  if rows.ndim not in (2, 3) or rows.dtype.kind != "f" or not rows.size:
    raise UserError(
      f"{path} holds {rows.dtype} {list(rows.shape)}, not floats [R, D] or"
      " [R, F, D]"
    )
  if len(keys) != len(rows) or not all(isinstance(k, str) for k in keys):
    raise UserError(
      f"{names} must hold {len(rows):,} JSON strings, one a line, as {path} has"
      f" rows; it holds {len(keys):,} lines"
    )
  return rows, keys


def _open_parquet(path: Path) -> tuple[np.ndarray, list[str]]:
  try:
    table = pq.read_table(path, columns=["key", "features"])
    keys = table["key"].to_pylist()
    column = table["features"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
  except (OSError, ValueError, KeyError) as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(
      f"{path} cannot be read: {reason}; it needs the columns key (string) and"
      " features (list of floats)"
    ) from None
  if not keys or len(values) % len(keys) or values.dtype.kind != "f":
    raise UserError(f"{path}: every row needs as many float features")
  return values.reshape(len(keys), -1), keys


def save_features(path: Path, rows: np.ndarray, keys: Sequence[str]) -> None:
  """Writes rows and their keys as `open_features` reads them."""
  np.save(path, rows)
  with open(path.with_suffix(".keys.jsonl"), "w", encoding="utf-8") as file:
    file.writelines(json.dumps(key, ensure_ascii=False) + "\n" for key in keys)
