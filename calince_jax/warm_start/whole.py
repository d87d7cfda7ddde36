"""All parameters of a trained model, as the start of a run: fine-tuning.

Clips may have other numbers of frames and pixels than they had, so positions
are interpolated; a classifier of other classes is new.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calince_jax import config as config_lib
from calince_jax.inference import exported
from calince_jax.inference.from_run import open_run
from calince_jax.inference.model import VideoTextModel
from calince_jax.warm_start.convert import Arrays
from calince_jax.warm_start.fit import Row, fit, unstacked

TOWERS = ("video_encoder/", "text_encoder/")
CLASSIFIER = "classifier/"


def open_model(folder: str) -> VideoTextModel:
  """What export wrote, or the averaged parameters of a run's last checkpoint.

  Raises:
    UserError: it is neither, or damaged.
  """
  if (Path(folder) / exported.WEIGHTS).is_file():
    return exported.load(folder)
  return open_run(folder)[0]


def read_settings(folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """`config.model` of an export or a run, and the shape of its clips.

  Uses no device: the processes of a run may not have met yet.

  Raises:
    UserError: it is neither, or damaged.
  """
  if (Path(folder) / exported.WEIGHTS).is_file():
    model = exported.read_document(Path(folder) / exported.CONFIG)["model"]
    return model, model
  config = config_lib.read_run(folder)
  return config["model"], config["data"]


def read(
  folder: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[Row]]:
  """Values for the parameters of a model, by path, and a row for each.

  Args:
    folder: an export or a run.
    shapes: of the parameters, by path.

  Raises:
    UserError: the folder is neither, or its model is another one.
  """
  arrays = unstacked(exported.flatten(open_model(folder).params))
  left = [] if _same_classes(arrays, shapes) else _without(arrays, CLASSIFIER)
  values, rows = {}, []
  for part in (*TOWERS, ""):
    found, report = fit(
      _part(arrays, part),
      _part(shapes, part),
      kind="text" if part == "text_encoder/" else "video",
      may_be_new="$^" if part else f"^{CLASSIFIER}",
      marks={},
      where=folder,
    )
    values |= {part + path: value for path, value in found.items()}
    rows += [Row(row.status, part + row.name, row.detail) for row in report]
  return values, rows + left


def _same_classes(arrays: Arrays, shapes: Mapping[str, tuple]) -> bool:
  name = f"{CLASSIFIER}kernel"
  return name in arrays and arrays[name].shape == shapes.get(name)


def _without(arrays: Arrays, start: str) -> list[Row]:
  """Takes out what begins so; a row for each."""
  names = [name for name in arrays if name.startswith(start)]
  for name in names:
    del arrays[name]
  return [Row("left out", name, "of other classes") for name in names]


def _part(named: Mapping, part: str) -> dict:
  """What begins with `part`, without it; "": what is of no tower."""
  if part:
    return {
      name.removeprefix(part): value
      for name, value in named.items()
      if name.startswith(part)
    }
  return {
    name: value for name, value in named.items() if not name.startswith(TOWERS)
  }
