"""Collects the results of a sweep in one table."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calince_jax.errors import UserError
from calince_jax.files import read_lines
from launch.workers import read_done


def collect(
  runs: Mapping[str, Mapping[str, Any]],
  workdir: Path,
  metrics: Sequence[str] = (),
) -> tuple[list[str], list[dict[str, Any]]]:
  """The table: a row for each run, with name, exit status, overrides, metrics.

  Metrics are those of the last line of metrics.jsonl (`loss`) and of
  eval/TASK.json (`TASK/t2v_R@1`). A row omits the metrics that its run lacks.

  Args:
    runs: the overrides of each run, by its name.
    workdir: the folder that holds the run folders.
    metrics: the names of metrics to include; default: step, loss and all of
      eval/.

  Returns:
    The names of the columns, and the rows.

  Raises:
    UserError: no run has one of `metrics`.
  """
  measured = [_last_metrics(workdir / run) for run in runs]
  known = list(dict.fromkeys(name for row in measured for name in row))
  unknown = [name for name in metrics if name not in known]
  if unknown:
    raise UserError(
      f"--metrics: no run has {unknown[0]!r}; choose from {known}"
    )
  chosen = metrics or [
    name for name in known if name in ("step", "loss") or "/" in name
  ]
  keys = list(
    dict.fromkeys(key for overrides in runs.values() for key in overrides)
  )
  columns, rows = ["run", "exit_status", *keys, *chosen], []
  for (run, overrides), values in zip(runs.items(), measured, strict=True):
    row = {"run": run, **overrides}
    done = read_done(workdir / run)
    if done is not None:
      row["exit_status"] = done["exit_status"]
    rows.append(row | {name: values[name] for name in chosen if name in values})
  return columns, rows


def _last_metrics(folder: Path) -> dict[str, Any]:
  lines = read_lines(folder / "metrics.jsonl")
  values = json.loads(lines[-1]) if lines else {}
  for path in sorted((folder / "eval").glob("*.json")):
    result = json.loads(path.read_text())["metrics"]
    values |= {f"{path.stem}/{name}": value for name, value in result.items()}
  return values


def write_table(
  path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> Path:
  """Writes the rows as CSV, empty where a value is missing; returns `path`."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
  return path


def markdown(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as a Markdown table, with four digits of each float."""

  def cell(row, column):
    if column not in row:
      return ""
    value = row[column]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", r"\|")

  lines = [list(columns), ["---"] * len(columns)]
  lines += [[cell(row, column) for column in columns] for row in rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
