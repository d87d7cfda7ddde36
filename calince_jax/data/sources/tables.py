"""Tables whose columns have other names, and Parquet files."""

import dataclasses
import pathlib
from collections.abc import Iterator

from calince_jax.data.problems import Problem
from calince_jax.data.sources.digest import digest_of
from calince_jax.data.sources.find import Finder
from calince_jax.data.sources.item import Clip
from calince_jax.data.sources.manifest import COLUMNS, clips_of_rows
from calince_jax.data.sources.manifest_rows import read_rows
from calince_jax.errors import UserError
from calince_jax.files import check_plain_file


@dataclasses.dataclass(frozen=True)
class Table:
  """A CSV, TSV, JSONL or Parquet file as a source of clips.

  Attributes:
    path: of the file.
    columns: (ours, theirs) of those that have another name in the file.
    root: the folder of the videos; the file's if None. A video may be named
      without folder and extension.
    allow_outside_root: whether a video may lie outside of `root`.
  """

  path: pathlib.Path
  columns: tuple[tuple[str, str], ...] = ()
  root: str | None = None
  allow_outside_root: bool = False

  def digest(self) -> str:
    """Returns the SHA-256 of the file and of `columns`."""
    return digest_of([self.path], self.columns)

  def scan(self) -> tuple[list[Clip], list[Problem]]:
    """Reads the rows, and looks whether the videos exist."""
    find = Finder(self.root or self.path.parent, self.allow_outside_root)
    return clips_of_rows(self.path, self._rows(), find)

  def _rows(self) -> Iterator[tuple[int, object]]:
    theirs = dict(self.columns)
    names = {ours: theirs.get(ours, ours) for ours in COLUMNS}
    if self.path.suffix.lower() == ".parquet":
      rows = read_parquet(self.path, list(names.values()))
    else:
      rows = read_rows(self.path, tuple(names[c] for c in ("video", "text")))
    for line, row in rows:
      if isinstance(row, dict):
        row = {ours: row.get(name) for ours, name in names.items()}
      yield line, row


def read_parquet(
  path: pathlib.Path, names: list[str]
) -> Iterator[tuple[int, dict[str, object]]]:
  """Yields (row, {column: value}) of the columns `names` that there are.

  One group of rows is in memory at a time.

  Raises:
    UserError: it is no Parquet file, or lacks the first two columns.
  """
  import pyarrow as pa
  import pyarrow.parquet as pq

  check_plain_file(path)
  try:
    with pq.ParquetFile(path) as file:
      known = file.schema_arrow.names
      for name in names[:2]:
        if name not in known:
          raise UserError(
            f"{path} has no column {name!r}; its columns are {known[:20]};"
            " name them with --columns=video:...,text:..."
          )
      number = 0
      for batch in file.iter_batches(
        4096, columns=[name for name in names if name in known]
      ):
        for row in batch.to_pylist():
          number += 1
          yield number, row
  except (pa.ArrowException, OSError) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{path} is no Parquet file ({reason})") from None
