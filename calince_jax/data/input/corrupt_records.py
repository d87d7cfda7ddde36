"""Lists the corrupt records of a run, and counts the samples they cost.

A sample whose record is corrupt takes another record of the same data set
(samples.py). This is the list of those records, the number of samples that were
substituted, and the limit on it.
"""

import csv
import dataclasses
import io
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from etils import epath

from calince_jax.data.problems import HEADER, CorruptRecord, Problem
from calince_jax.errors import UserError
from calince_jax.files import LineFile, read_lines, without_controls

MAX_PRINTED = 20  # warnings; the ledger has them all
WHAT_TO_DO = "copy the data set again, or run prepare again"


class Reader(Protocol):
  """What CorruptRecordLog needs of a ClipReader."""

  directory: str
  split: str

  def __len__(self) -> int: ...


class CorruptRecordLog:
  """The corrupt records that one process meets in the data sets of its mix.

  Each is written to the ledger once, when it is first met; rows of an earlier
  part of the run stay. All methods are safe to call from threads.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    readers: Sequence[Reader],
    *,
    max_bad_fraction: float,
    share: float = 1.0,
    process: int = 0,
  ):
    """Reads the ledger of an earlier part of the run; writes nothing yet.

    Args:
      workdir: of the run, where `ledger.csv` lies (`ledger-P.csv` of
        process P > 0).
      readers: the data sets of the mix.
      max_bad_fraction: of samples that may be substituted, in [0, 1].
      share: of each batch that this process holds, in (0, 1].
      process: the number of this process.

    Raises:
      UserError: `max_bad_fraction` is out of range.
    """
    if not 0 <= max_bad_fraction <= 1:
      raise UserError(
        f"config.data.max_bad_fraction={max_bad_fraction} must be in [0, 1]"
      )
    name = f"ledger-{process}.csv" if process else "ledger.csv"
    self.path = epath.Path(workdir) / name
    self._max, self._share = max_bad_fraction, share
    self._sizes = [len(reader) for reader in readers]
    self._names = _short_names([reader.directory for reader in readers])
    self._drawn = np.zeros(len(readers), np.int64)
    self._substituted = np.zeros(len(readers), np.int64)
    self._lock = threading.Lock()
    lines = read_lines(self.path)
    self._known = {row[0] for row in csv.reader(lines[1:]) if row}
    self._waiting = [] if lines else [_as_line(HEADER)]  # not written yet
    self._file: LineFile | None = None
    self._printed = 0

  def add(self, error: CorruptRecord) -> None:
    """Writes a record to the ledger, unless it is there."""
    where = f"{error.directory}/{error.split}/record {error.record}"
    with self._lock:
      if where in self._known:
        return
      self._known.add(where)
      problem = Problem(where, "corrupt record", error.reason, WHAT_TO_DO)
      self._waiting.append(_as_line(dataclasses.astuple(problem)))
      self._print(f"{where} is left out: corrupt record ({error.reason})")
      try:
        self._write()
      except OSError as failure:  # a full disk: tried again with the next one
        self._file = None
        self._print(f"{self.path} cannot be written: {failure}")

  def count(self, data_sets: np.ndarray, substituted: np.ndarray) -> None:
    """Counts the samples of a batch.

    Args:
      data_sets: int [b], which data set of the mix each is of.
      substituted: bool [b], whether its own record is corrupt.

    Raises:
      UserError: more of a data set are substituted than `limit` allows.
    """
    with self._lock:
      kinds = len(self._sizes)
      self._drawn += np.bincount(data_sets, minlength=kinds)
      self._substituted += np.bincount(data_sets[substituted], minlength=kinds)
      for d, name in enumerate(self._names):
        bad, drawn = int(self._substituted[d]), int(self._drawn[d])
        if bad > self.limit(drawn, self._sizes[d]):
          raise UserError(
            f"{bad} of {drawn} samples of {name} had a corrupt record, more "
            f"than config.data.max_bad_fraction={self._max:g} of its "
            f"{self._sizes[d]} clips explains; {self.path} lists them: copy "
            "the data set again, run prepare again, or raise "
            "config.data.max_bad_fraction"
          )

  def limit(self, drawn: int, size: int) -> float:
    """Returns how many samples of a data set may be substituted.

        n = size share ceil(drawn / (size share))
        limit = f n + 4 sqrt(f n (1 - share))

    with f = max_bad_fraction. The samples are rounded up to whole epochs, for
    the corrupt ones may come first in an epoch. The square root allows for
    chance: which records one process of several reads is random.

    Args:
      drawn: samples of it so far, of this process.
      size: its number of records.
    """
    epoch = size * self._share
    n = epoch * max(1, math.ceil(drawn / epoch))
    mean = self._max * n
    return mean + 4 * math.sqrt(mean * (1 - self._share))

  def counts(self) -> dict[str, int]:
    """Returns {"substituted/NAME": samples so far} of each data set."""
    with self._lock:
      counts = {f"substituted/{name}": 0 for name in self._names}
      for name, count in zip(self._names, self._substituted, strict=True):
        counts[f"substituted/{name}"] += int(count)
      return counts

  def _print(self, text):
    self._printed += 1
    if self._printed <= MAX_PRINTED:
      print(f"warning: {text}", flush=True)
    if self._printed == MAX_PRINTED:
      print(f"warning: further ones are in {self.path} alone", flush=True)

  def _write(self):
    if self._file is None:
      self._file = LineFile(self.path)
    while self._waiting:
      self._file.append(self._waiting[0])
      del self._waiting[0]


def _as_line(row: Sequence[str]) -> str:
  """Returns a row of a CSV file, without its line end."""
  table = io.StringIO()
  csv.writer(table, lineterminator="\n").writerow(map(without_controls, row))
  return table.getvalue().removesuffix("\n")


def _short_names(folders):
  """Returns the folders' names, or their paths where two have one name."""
  paths = {folder: str(Path(folder).resolve()) for folder in folders}
  taken = [Path(path).name for path in set(paths.values())]
  names = {f: Path(path).name for f, path in paths.items()}
  return [names[f] if taken.count(names[f]) == 1 else paths[f] for f in folders]
