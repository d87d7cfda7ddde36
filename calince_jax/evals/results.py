"""Results of evaluate: written to WORKDIR/eval/, and printed as tables."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from calince_jax.files import without_controls, write_atomic

COLUMNS = ("pair_index", "id", "text", "confidence", "alignment_score")
OUTPUTS = ("head", "cosine")  # columns as well, where the model has them


def save(
  workdir: str, results: Iterable[tuple[str, dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
  """Writes, prints and returns the result of each task as soon as it is there.

  Args:
    workdir: the run folder.
    results: of tasks.run; `pairs` of a result go to pairs.csv.
  """
  folder, saved = epath.Path(workdir) / "eval", {}
  for name, result in results:
    folder.mkdir(exist_ok=True)
    print_table(name, result)
    if "pairs" in result:
      write_pairs(folder / "pairs.csv", result.pop("pairs"))
    path = folder / f"{name}.json"
    write_atomic(path, json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}", flush=True)
    saved[name] = result
  return saved


def write_pairs(path: epath.Path, pairs: Sequence[dict[str, Any]]) -> None:
  """Writes a CSV file of the pairs, in their order."""
  columns = [*COLUMNS, *(name for name in OUTPUTS if name in pairs[0])]
  file = io.StringIO(newline="")
  writer = csv.DictWriter(file, columns, extrasaction="ignore")
  writer.writeheader()
  for pair in pairs:
    texts = {name: no_formula(pair[name]) for name in ("id", "text")}
    writer.writerow(pair | texts)
  write_atomic(path, file.getvalue())
  print(f"wrote {path}", flush=True)


def no_formula(text: str) -> str:
  """`text`, behind a ' where a spreadsheet would take it for a formula.

  Control characters are written as escapes.
  """
  text = without_controls(text)
  return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def print_table(task: str, result: dict[str, Any]) -> None:
  """Prints the metrics of a task, chance beside each."""
  names = ("metrics", "chance", "majority", "dual_softmax")
  columns = [name for name in names if name in result]
  said = result["protocol"]
  print(f"\n{task}, split {said['split']}")
  if "clips found" in said:
    print(f"  {said['name']}: {said['clips found']} clips ({said['test set']})")
  if "note" in said:
    print(f"  note: {said['note']}")
  print(f"  {'':26}" + "".join(f"{name:>14}" for name in columns))
  for metric in result["metrics"]:
    cells = [
      f"{result[name][metric]:.3f}" if metric in result[name] else ""
      for name in columns
    ]
    print(f"  {metric:26}" + "".join(f"{cell:>14}" for cell in cells))
