"""Arrays fitted to the parameters of a tower, and what became of each.

Positions are interpolated (cubic in space, linear in time); of a text's the
first are kept. Blocks are stacked where the tower scans them.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import jax
import numpy as np

from calince_jax.errors import UserError
from calince_jax.warm_start.convert import Arrays

STATUSES = ("loaded", "inflated", "interpolated", "new", "left out")


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the report.

  Attributes:
    status: one of STATUSES.
    name: of the parameter; of what is left out, of the array in the folder.
    detail: more on it, or "".
  """

  status: str
  name: str
  detail: str = ""


def fit(
  arrays: Arrays,
  shapes: Mapping[str, tuple[int, ...]],
  *,
  kind: str,
  may_be_new: str,
  marks: Mapping[str, tuple[str, str]],
  where: str,
) -> tuple[Arrays, list[Row]]:
  """The values of a tower's parameters that `arrays` hold, and all rows.

  Args:
    arrays: by path, see convert.py.
    shapes: of the tower's parameters, by path within the tower.
    kind: `video` or `text`.
    may_be_new: expression of the paths that keep their fresh values where
      `arrays` lack them.
    marks: {path in `arrays`: (status, detail)} where it is not `loaded`.
    where: the folder, for messages.

  Raises:
    UserError: a parameter is missing or has another shape.
  """
  values, rows, used = {}, [], set()
  for path, shape in shapes.items():
    parts = _parts(path, shape)
    used.update(parts)
    found = [part for part in parts if part in arrays]
    if not found and re.search(may_be_new, path):
      rows.append(Row("new", path))
      continue
    if len(found) < len(parts):
      lacking = next(part for part in parts if part not in arrays)
      raise UserError(f"{where} has nothing for the parameter {lacking}")
    status, detail = marks.get(parts[0], ("loaded", ""))
    value = (
      np.stack([arrays[part] for part in parts])
      if parts != [path]
      else arrays[path]
    )
    if value.shape != shape and path.endswith("position"):
      classes = int(kind == "video" and "class_token" in arrays)
      value, how = _position(path, value, shape, kind, classes, where)
      status = "loaded" if kind == "text" else "interpolated"
      detail = "; ".join(filter(None, (detail, how)))
    if value.shape != shape:
      raise UserError(
        f"{where}: {path} has the shape {list(value.shape)}, and the model"
        f" wants {list(shape)}"
      )
    values[path] = value.astype(np.float32)
    rows.append(Row(status, path, detail))
  rows += [
    Row("left out", path, "no parameter of this model")
    for path in sorted(arrays.keys() - used)
  ]
  return values, rows


def unstacked(arrays: Arrays) -> Arrays:
  """Blocks one by one, whether the tower had scanned them or not."""
  found = {}
  for path, value in arrays.items():
    if "/blocks/" not in path:
      found[path] = value
      continue
    for i, part in enumerate(value):
      found[path.replace("/blocks/", f"/block_{i}/")] = part
  return found


def _parts(path, shape):
  """The paths of the blocks that a scanned parameter is stacked of."""
  if "/blocks/" not in path:
    return [path]
  return [path.replace("/blocks/", f"/block_{i}/") for i in range(shape[0])]


def _position(path, value, shape, kind, classes, where):
  """`value` for other numbers of places, and how it was made."""
  if kind == "text":
    if len(value) < shape[0]:
      raise UserError(
        f"{where} has positions for {len(value)} tokens: lower"
        f" config.data.text_length={shape[0]}"
      )
    return value[: shape[0]], f"the first {shape[0]} of {len(value)} rows"
  if path == "time_position":
    frames = value.reshape(len(value), -1)
    resized = _resize(frames, (shape[0], frames.shape[1]), "linear")
    return resized.reshape(shape), f"{len(value)} instants to {shape[0]}"
  old, new = (math.isqrt(n - classes) for n in (len(value), shape[0]))
  if old**2 != len(value) - classes:
    raise UserError(f"{where}: {len(value)} positions are no square of patches")
  grid = value[classes:].reshape(old, old, -1)
  grid = _resize(grid, (new, new, grid.shape[-1]), "cubic")
  rows = grid.reshape(new * new, -1)
  return (
    np.concatenate([value[:classes], rows]),
    f"{old} x {old} patches to {new} x {new}",
  )


def _resize(x, shape, method):
  return np.asarray(jax.image.resize(x, shape, method, antialias=False))
