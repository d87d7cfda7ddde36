"""Records that training cannot use: listed, counted, and when it is too much.

A sample whose record is damaged takes another record of the same data set
(samples.py). Here is written down which records these are, and how many
samples were substituted.
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

from calince_jax.data.sources.manifest import Problem
from calince_jax.errors import UserError

PRINTED = 20  # warnings; the ledger has them all
WHAT_TO_DO = "copy the data set again, or prepare it anew"


class DamagedRecord(UserError):
  """A record that cannot be used.

  Attributes:
    directory: of the data set.
    split: that it belongs to.
    record: its number in the split.
    reason: in one sentence.
    what: the kind of fault, in two or three words.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    split: str,
    record: int,
    reason: str,
    what: str = "damaged record",
  ):
    self.directory = os.fspath(directory)
    self.split = split
    self.record = record
    self.reason = " ".join(reason.split())
    self.what = what
    super().__init__(
      f"clip {record} of split {split!r} in {self.directory} is damaged "
      f"({self.reason}); copy the folder again or prepare the data anew"
    )


class Reader(Protocol):
  """What DamageLog asks of a ClipReader."""

  directory: str
  split: str

  def __len__(self) -> int: ...


class DamageLog:
  """What one process finds damaged in the data sets of its mix.

  Each damaged record is written to the ledger when it is first found, and
  once; rows of an earlier part of the run stay. All methods are safe to call
  from threads.
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
    """Reads the ledger that is there; writes nothing yet.

    Args:
      workdir: of the run, where `ledger.csv` is kept (`ledger-P.csv` of
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
    self._written = _whole_rows(self.path)
    self._waiting: list[list[str]] = []  # rows that could not be written yet
    self._known = {row[0] for row in self._written[1:]}
    self._torn = True  # the file may end within a row: write it whole, once
    self._printed = 0

  def found(self, fault: DamagedRecord) -> None:
    """Writes a record down, unless that has been done."""
    where = f"{fault.directory}/{fault.split}/record {fault.record}"
    with self._lock:
      if where in self._known:
        return
      self._known.add(where)
      problem = Problem(where, fault.what, fault.reason, WHAT_TO_DO)
      self._waiting.append(list(dataclasses.astuple(problem)))
      self._print(f"{where} is left out: {fault.what} ({fault.reason})")
      try:
        self._write()
      except OSError as error:  # a full disk: tried again with the next one
        self._torn = True
        self._print(f"{self.path} cannot be written: {error}")

  def count(self, data_sets: np.ndarray, substituted: np.ndarray) -> None:
    """Counts the samples of a batch.

    Args:
      data_sets: int [b], which data set of the mix each is of.
      substituted: bool [b], whether its own record is damaged.

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
            f"{bad} of {drawn} samples of {name} had a damaged record, more "
            f"than config.data.max_bad_fraction={self._max:g} of its "
            f"{self._sizes[d]} clips explains; {self.path} lists them: copy "
            "the data set again, prepare it anew, or raise "
            "config.data.max_bad_fraction"
          )

  def limit(self, drawn: int, size: int) -> float:
    """How many samples of a data set may be substituted.

        n = size share ceil(drawn / (size share))
        limit = f n + 4 sqrt(f n (1 - share))

    with f = max_bad_fraction. The samples are rounded up to whole epochs, for
    the damaged ones may come first in an epoch. The square root is what chance
    deals to one process of several: which records it reads is random.

    Args:
      drawn: samples of it so far, of this process.
      size: its number of records.
    """
    epoch = size * self._share
    n = epoch * max(1, math.ceil(drawn / epoch))
    mean = self._max * n
    return mean + 4 * math.sqrt(mean * (1 - self._share))

  def counts(self) -> dict[str, int]:
    """{"substituted/NAME": samples so far} of each data set."""
    with self._lock:
      counts = {f"substituted/{name}": 0 for name in self._names}
      for name, count in zip(self._names, self._substituted, strict=True):
        counts[f"substituted/{name}"] += int(count)
      return counts

  def _print(self, text):
    self._printed += 1
    if self._printed <= PRINTED:
      print(f"warning: {text}", flush=True)
    if self._printed == PRINTED:
      print(f"warning: further ones are in {self.path} alone", flush=True)

  def _write(self):
    if not self._written:
      self._written = [[field.name for field in dataclasses.fields(Problem)]]
    if "://" in str(self.path):  # a bucket's files cannot be appended to
      self.path.write_bytes(_as_bytes(self._written + self._waiting))
    elif self._torn:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      partial = Path(f"{self.path}.partial")
      partial.write_bytes(_as_bytes(self._written + self._waiting))
      os.replace(partial, self.path)
      self._torn = False
    else:
      with open(self.path, "ab") as file:
        file.write(_as_bytes(self._waiting))
    self._written += self._waiting
    self._waiting = []


def _as_bytes(rows):
  table = io.StringIO()
  csv.writer(table, lineterminator="\n").writerows(rows)
  return table.getvalue().encode("utf-8", "backslashreplace")


def _whole_rows(path):
  """The rows of the ledger; a last one without its end is dropped."""
  if not path.exists():
    return []
  text = path.read_bytes().decode("utf-8", "replace").rpartition("\n")[0]
  return [row for row in csv.reader(io.StringIO(text)) if row]


def _short_names(folders):
  """The folders' own names, or their paths where two have the same."""
  paths = {folder: str(Path(folder).resolve()) for folder in folders}
  taken = [Path(path).name for path in set(paths.values())]
  names = {f: Path(path).name for f, path in paths.items()}
  return [names[f] if taken.count(names[f]) == 1 else paths[f] for f in folders]
