"""The arrays of a folder of weights: safetensors, in one file or several."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from calince_jax.errors import UserError
from calince_jax.files import check_plain_file, read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What the first checkpoints of BERT call the parameters of a layer norm.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight"}
_OLD_NAMES |= {"LayerNorm.beta": "LayerNorm.bias"}


class Weights:
  """Arrays by name; each is read when it is taken.

  Attributes:
    folder: where they lie.
    prefix: stands before every name that is asked for.
  """

  def __init__(self, folder: str | Path):
    """Opens the files.

    Raises:
      UserError: there are none, or one is damaged.
    """
    self.folder, self.prefix = Path(folder), ""
    self._places: dict[str, tuple[Any, str]] = {}
    self._taken: set[str] = set()
    for path in _files(self.folder):
      check_plain_file(path)
      try:
        file = safe_open(path, framework="np")
        names = list(file.keys())
      except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
          f"{path} cannot be read ({' '.join(str(error).split())[:200]}): it is"
          " damaged or cut; copy it again"
        ) from None
      for name in names:
        self._places[_today(name)] = (file, name)

  def under(self, probe: str) -> None:
    """Sets `prefix` to what stands before `probe` in the names.

    Raises:
      UserError: no name, or more than one, ends so.
    """
    found = [
      name
      for name in self._places
      if name == probe or name.endswith(f".{probe}")
    ]
    if len(found) != 1:
      raise UserError(
        f"{self.folder} has {len(found)} arrays called {probe}: its weights are"
        f" not of the architecture that its {CONFIG} names"
      )
    self.prefix = found[0].removesuffix(probe)

  def __contains__(self, name: str) -> bool:
    return self.prefix + name in self._places

  def take(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An array, float32.

    Args:
      name: without the prefix.
      shape: that it must have; None: any.

    Raises:
      UserError: there is none, it has another shape, or holds numbers that are
        not finite.
    """
    full = self.prefix + name
    if full not in self._places:
      raise UserError(
        f"{self.folder} lacks the array {full}: its weights are not of the"
        f" architecture that its {CONFIG} names"
      )
    file, stored = self._places[full]
    value = np.asarray(file.get_tensor(stored)).astype(np.float32)
    if shape is not None and value.shape != shape:
      raise UserError(
        f"{self.folder}: {full} has the shape {list(value.shape)}, and its"
        f" {CONFIG} says {list(shape)}"
      )
    if not np.isfinite(value).all():
      raise UserError(
        f"{self.folder}: {full} holds numbers that are not finite"
      )
    self._taken.add(full)
    return value

  def left(self) -> Iterator[str]:
    """The names of arrays that were not taken."""
    return (name for name in sorted(self._places) if name not in self._taken)


def _files(folder):
  """The files of weights in a folder."""
  if (folder / WEIGHTS).exists():
    return [folder / WEIGHTS]
  if not (folder / INDEX).exists():
    others = sorted(path.name for path in folder.glob("*.bin"))[:1]
    beside = (
      f"; {others[0]} is a pickle, which is never opened" if others else ""
    )
    raise UserError(
      f"{folder} holds neither {WEIGHTS} nor {INDEX}{beside}; name a folder of"
      " weights"
    )
  places = read_json(folder / INDEX).get("weight_map")
  if not isinstance(places, dict) or not places:
    raise UserError(f"{folder / INDEX} is damaged: it has no weight_map")
  names = sorted({json.dumps(name) for name in places.values()})
  paths = []
  for name in map(json.loads, names):
    if not isinstance(name, str) or Path(name).name != name:
      raise UserError(f"{folder / INDEX} names {name!r}, not a file beside it")
    if not (folder / name).exists():
      raise UserError(f"{folder} lacks {name}, which its {INDEX} names")
    paths.append(folder / name)
  return paths


def _today(name):
  for old, new in _OLD_NAMES.items():
    if name.endswith(old):
      return name.removesuffix(old) + new
  return name
