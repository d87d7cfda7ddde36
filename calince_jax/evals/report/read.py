"""Reads what train and evaluate have written into a run folder."""

import datetime
import shlex
from pathlib import Path

from calince_jax import files
from calince_jax.errors import UserError

# Events of training that the page tells, in their own words.
NOTES = ("took_off", "no_learning", "calibration_began", "not_identified")
TASKS = ("retrieval", "video_retrieval", "recognition", "calibration")
MORE_TASKS = ("classification", "zero_shot")  # shown where they were run


def read_run(workdir: Path) -> dict:
  """Everything that the page shows of a run; see page.render.

  Raises:
    UserError: there is nothing to report, or a file is not JSON.
  """
  run = {"config": read_config(workdir / "config.json")}
  run["metrics"] = read_metrics(workdir / "metrics.jsonl")
  for task in (*TASKS, *MORE_TASKS):
    run[task] = read_json(workdir / "eval" / f"{task}.json")
  if not any(run.values()):
    raise UserError(
      f"{workdir} holds no config.json, no metrics.jsonl and no eval/*.json; "
      "is it the --workdir of a training run?"
    )
  return run | {
    "notes": read_notes(workdir / "events.jsonl"),
    "name": workdir.resolve().name,
    "workdir": shlex.quote(str(workdir)),
    "date": datetime.date.today().isoformat(),
  }


def read_json(path: Path) -> dict | None:
  """The object in a file, None where there is no file."""
  if not path.exists():
    return None
  return files.read_json(path)


def read_config(path: Path) -> dict | None:
  """The configuration in a run's config.json, None where there is no file."""
  document = read_json(path)
  if document is None:
    return None
  if not isinstance(document.get("config"), dict):
    raise UserError(f"{path}: not the config.json of a run, no key 'config'")
  return document["config"]


def read_metrics(path: Path) -> list[dict]:
  """The rows of metrics.jsonl by rising step, [] where there is no file.

  Where a step stands twice, because a run resumed from an older checkpoint, the
  later line counts. A last line without its end is still being written.
  """
  if not path.exists():
    return []
  rows = []
  lines = files.read_text(path).split("\n")[:-1]
  for number, line in enumerate(lines, 1):
    rows.append(files.parse_json(line, f"{path}, line {number}"))
    if type(rows[-1].get("step")) is not int:
      raise UserError(f"{path}, line {number}: no whole number 'step'")
  by_step = {row["step"]: row for row in rows}
  return [by_step[step] for step in sorted(by_step)]


def read_notes(path: Path) -> list[str]:
  """What training said of how it went, the last of each kind; [] if nothing."""
  if not path.exists():
    return []
  last = {}
  lines = files.read_text(path).split("\n")[:-1]
  for number, line in enumerate(lines, 1):
    row = files.parse_json(line, f"{path}, line {number}")
    if row.get("event") in NOTES:
      last[row["event"]] = str(row["words"])
  if "took_off" in last:
    last.pop("no_learning", None)
  return list(last.values())


def part(result: dict, name: str) -> list:
  """An optional part of a result."""
  if name not in result:
    return []
  return result[name]
