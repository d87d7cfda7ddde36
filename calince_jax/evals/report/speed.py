"""How fast a run was, and what kept its devices from steps."""

from collections.abc import Mapping, Sequence
from typing import Any

WORDS = {
  "goodput": "steps",
  "lost_to_start": "start",
  "lost_to_compile": "compiling",
  "lost_to_data": "waiting for data",
  "lost_to_checkpoint": "checkpoints",
  "lost_to_evaluation": "evaluation",
}


def lines(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
  """(label, value) of the last row's rates, and of its shares of the time.

  Args:
    rows: of metrics.jsonl, maybe of an older run that lacks the columns.
  """
  if not rows or "goodput" not in rows[-1]:
    return []
  row = rows[-1]
  rate = f"{row['examples_per_second']:,.1f} examples a second"
  rate += f", {row['examples_per_second_per_device']:,.1f} a device"
  found = [("last rate", rate)]
  if "mfu" in row:
    found.append(("model FLOPs utilisation", f"{row['mfu']:.1%}"))
  shares = ", ".join(f"{words} {row[k]:.1%}" for k, words in WORDS.items())
  return [*found, ("time since the last start", shares)]
