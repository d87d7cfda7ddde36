"""The corpora of the noise study: where they lie, and how they are made."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from calince_jax.errors import UserError
from launch.workers import Command, run_all

DEFAULT = "shapes"
SPLITS = ("train", "val", "test")


def section(corpus: str) -> str:
  """The name of the corpus's part of results.md, and of its folder in runs/."""
  if corpus == DEFAULT:
    return "noise_study"
  return f"noise_study_{Path(corpus).resolve().name}"


def open_corpus(study: ModuleType, corpus: str, out: Path) -> Path:
  """The prepared data set of a corpus; makes OUT/data of a named one.

  Args:
    study: the configuration's module.
    corpus: one of its CORPORA, or a prepared data set.
    out: folder of the study.

  Raises:
    UserError: it is neither, lacks a split, or could not be made.
  """
  data = Path(corpus)
  if corpus in study.CORPORA:
    data = out / "data"
    folder = out / "corpus"
    commands = make_commands(study.CORPORA[corpus], folder, data)
    if run_all({folder: commands}, num_workers=1):
      raise UserError("the corpus could not be made; see above")
  elif not (data / "dataset.json").exists():
    raise UserError(
      f"--corpus={corpus} is neither one of {', '.join(study.CORPORA)} nor the"
      " folder of a prepared data set"
    )
  missing = [name for name in SPLITS if name not in describe(data)["splits"]]
  if missing:
    raise UserError(f"{data} has no split {', '.join(missing)}")
  return data


def describe(data: Path) -> dict[str, Any]:
  """What dataset.json says.

  Raises:
    UserError: it is not there.
  """
  path = data / "dataset.json"
  if not path.exists():
    raise UserError(f"{data} is not a prepared data set: no dataset.json")
  return json.loads(path.read_text())


def make_commands(
  corpus: dict[str, Any], folder: Path, data: Path
) -> list[Command]:
  """What makes FOLDER/synthetic and prepares it as `data`.

  A simulator gets an environment of its own, FOLDER/env.
  """
  clips, python, commands = folder / "synthetic", sys.executable, []
  if corpus["packages"]:
    python = str(folder / "env" / "bin" / "python")
    commands = [
      (sys.executable, "-m", "venv", str(folder / "env")),
      (python, "-m", "pip", "install", "--quiet", *corpus["packages"]),
    ]
  return [
    *commands,
    (
      *(python, "-m", corpus["module"], f"--out={clips}"),
      *as_flags(corpus["flags"]),
    ),
    (
      *(sys.executable, "-m", "calince_jax.prepare"),
      f"--manifest={clips / 'manifest.csv'}",
      f"--out={data}",
      *as_flags(corpus["prepare"]),
    ),
  ]


def as_flags(values: dict[str, Any]) -> list[str]:
  """The values as flags of a command line."""
  return [f"--{name}={value}" for name, value in values.items()]
