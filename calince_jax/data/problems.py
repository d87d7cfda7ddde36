"""Why something cannot be used: in a manifest, in a video, in a record.

Problems are collected in a ledger, a CSV file with one row for each.
"""

import collections
import csv
import dataclasses
import io
import os
import pathlib

from calince_jax.errors import UserError
from calince_jax.files import without_controls, write_atomic


@dataclasses.dataclass(frozen=True)
class Problem:
  """One row of a ledger.

  Attributes:
    path: the video, as the source names it, or the record.
    what: the kind of problem, in two or three words.
    why: this case of it, in one sentence.
    what_to_do: advice.
  """

  path: str
  what: str
  why: str
  what_to_do: str


HEADER = [field.name for field in dataclasses.fields(Problem)]


class CorruptRecord(UserError):
  """A record that fails its checksum or cannot be parsed.

  Attributes:
    directory: of the data set.
    split: that it belongs to.
    record: its number in the split.
    reason: in one sentence.
  """

  def __init__(
    self, directory: str | os.PathLike, split: str, record: int, reason: str
  ):
    self.directory = os.fspath(directory)
    self.split = split
    self.record = record
    self.reason = " ".join(reason.split())
    super().__init__(
      f"record {record} of split {split!r} in {self.directory} is corrupt "
      f"({self.reason}); copy the folder again, or run prepare again"
    )


class Ledger:
  """Lists the problems of one prepare, and ends it when they are too many.

  A context manager: the file is written when its block is left, also by an
  exception.
  """

  def __init__(self, path: pathlib.Path, total: int, max_bad_fraction: float):
    """Starts an empty ledger.

    Args:
      path: of the file.
      total: number of clips, the unusable ones included.
      max_bad_fraction: share of them that may be unusable, in [0, 1].
    """
    self.problems: list[Problem] = []
    self._path = path
    self._total, self._max = total, max_bad_fraction

  def __enter__(self) -> "Ledger":
    return self

  def __exit__(self, *_) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(
      sorted(dataclasses.astuple(_harmless(p)) for p in self.problems)
    )
    write_atomic(self._path, table.getvalue())

  def add(self, problem: Problem) -> None:
    """Adds a problem.

    Raises:
      UserError: there are more than max_bad_fraction allows.
    """
    self.problems.append(problem)
    bad = len(self.problems)
    if bad > self._max * self._total:
      raise UserError(
        f"{bad} of {self._total} clips cannot be used so far, more than "
        f"--max_bad_fraction={self._max:g}: {self.reasons()}; see "
        f"{self._path}. Correct them, or raise --max_bad_fraction: the same "
        "command then resumes"
      )

  def reasons(self) -> str:
    """Returns the three commonest kinds of problem, with their counts."""
    kinds = collections.Counter(problem.what for problem in self.problems)
    return ", ".join(f"{n} x {what}" for what, n in kinds.most_common(3))


def _harmless(problem: Problem) -> Problem:
  """Writes the path as ./PATH where a spreadsheet would see a formula."""
  if problem.path.startswith(("=", "+", "-", "@")):
    problem = dataclasses.replace(problem, path=f"./{problem.path}")
  return Problem(*map(without_controls, dataclasses.astuple(problem)))
