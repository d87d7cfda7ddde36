"""Collects the runs of the noise study into table, figures and text."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.noise_study import figures, text
from benchmarks.noise_study.bars import judge
from benchmarks.noise_study.corpora import describe
from benchmarks.noise_study.runs import (
  Result,
  condition_of,
  measure,
  read_results,
)
from benchmarks.noise_study.statistics import COST_FILE, ratios, summarise
from calince_jax.errors import UserError
from calince_jax.evals.retrieval import text_video_chance
from launch import table
from launch.expand import Run

REFERENCES = ("infonce", "cotrain")  # of the cost


def collect(
  study: ModuleType,
  runs: Sequence[Run],
  out: Path,
  data: Path,
  docs: Path,
  name: str,
) -> dict[str, Any]:
  """Reads what is finished, writes table, summary, figures and text.

  Args:
    study: the configuration's module.
    runs: of its sweep().
    out: folder of the runs, of the table and of the summary.
    data: prepared data set.
    docs: folder of results.md, which is made where it is not there.
    name: of the marks in it, and of the figures.

  Returns:
    The summary.

  Raises:
    UserError: no run is finished, or the data set is not there.
  """
  found, missing = read_results(runs, out)
  if not found:
    raise UserError(f"{out} has no finished run; start without --collect")
  write_table(out / "table.csv", found)
  summary = {
    "study": {
      "methods": list(study.METHODS),
      "name": name,
      "noise_rates": list(study.NOISE_RATES),
      "conditions": list(dict.fromkeys(map(condition_of, runs))),
      "num_seeds": study.NUM_SEEDS,
    },
    "runs": {
      "expected": len(runs),
      "finished": len(found),
      "missing": missing,
      "seconds": [r.seconds for r in found if r.seconds is not None],
    },
    "data": describe_data(data),
    "cost": read_cost(out),
    **summarise(found),
  }
  summary["bars"] = judge(summary, study.METHODS, study.NOISE_RATES)
  path = out / text.SUMMARY
  path.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
  drawn = figures.draw(summary, docs / "figures")
  print(f"{len(found)} of {len(runs)} runs are finished")
  for written in (out / "table.csv", path, *drawn):
    print(f"wrote {written}")
  file = docs / "results.md"
  if not file.exists():
    file.write_text(f"<!-- {name} -->\n<!-- /{name} -->\n")
  if results.replace(file, name, text.section(out)):
    print(f"wrote {file}")
  else:
    print(f"{file} has no <!-- {name} --> marks: not written")
  return summary


def write_table(path: Path, found: Sequence[Result]) -> None:
  """One row a run."""
  rows = [
    {
      "method": result.method,
      "noise_rate": result.noise_rate,
      "kind": result.kind,
      "seed": result.seed,
      "seconds": result.seconds,
      **measure(result),
    }
    for result in found
  ]
  columns = list(dict.fromkeys(name for row in rows for name in row))
  table.write_table(path, columns, rows)


def describe_data(data: Path) -> dict[str, Any]:
  """{splits, chance}: the sizes, and what random scores give on test.

  Raises:
    UserError: it is not there, or test clips do not have one caption each.
  """
  splits = describe(data)["splits"]
  clips = splits["test"]["clips"]
  if splits["test"]["pairs"] != clips:
    raise UserError(f"{data}: the test clips must have one caption each")
  return {
    "splits": splits,
    "chance": text_video_chance(np.arange(clips), clips),
  }


def read_cost(out: Path) -> dict[str, Any] | None:
  """OUT/cost.json with its ratios; None where nothing has been timed.

  Returns:
    {cores, seconds_per_step: {method: [by round]}, against: {reference:
    {method: {median, min, max}}}}.
  """
  path = out / COST_FILE
  if not path.exists():
    return None
  document = json.loads(path.read_text())
  seconds = document["seconds_per_step"]
  document["against"] = {
    name: ratios(seconds, name) if name in seconds else {}
    for name in REFERENCES
  }
  return document
