"""The list of what could not be used, and the point at which it is too much."""

import collections
import csv
import dataclasses
import io
import pathlib

from calince_jax.data.records.clip_dataset import write_text
from calince_jax.data.sources.manifest import Problem
from calince_jax.errors import UserError


def _harmless(problem: Problem) -> Problem:
  """The path as ./PATH where a spreadsheet would take it for a formula."""
  if problem.path.startswith(("=", "+", "-", "@")):
    return dataclasses.replace(problem, path=f"./{problem.path}")
  return problem


class Ledger:
  """What cannot be used; written to ledger.csv when the block is left."""

  def __init__(self, out: pathlib.Path, total: int, max_bad_fraction: float):
    self.problems: list[Problem] = []
    self._out, self._total, self._max = out, total, max_bad_fraction

  def __enter__(self) -> "Ledger":
    return self

  def __exit__(self, *_) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Problem)])
    writer.writerows(
      sorted(dataclasses.astuple(_harmless(p)) for p in self.problems)
    )
    write_text(self._out / "ledger.csv", table.getvalue())

  def add(self, problem: Problem) -> None:
    """Raises UserError when it is one too many."""
    self.problems.append(problem)
    bad = len(self.problems)
    if bad > self._max * self._total:
      raise UserError(
        f"{bad} of {self._total} clips cannot be used so far, more than "
        f"--max_bad_fraction={self._max:g}: {self.reasons()}; see "
        f"{self._out / 'ledger.csv'} and mend them, or raise "
        "--max_bad_fraction: the same command then continues"
      )

  def reasons(self) -> str:
    """The three commonest."""
    kinds = collections.Counter(problem.what for problem in self.problems)
    return ", ".join(f"{n} x {what}" for what, n in kinds.most_common(3))
