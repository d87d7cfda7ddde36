"""The mesh of a run, and the rules that shard its parameters over it.

One mesh with the axes `data` and `model`. A rule is (regular expression over
the path of a parameter, how to shard it); the first rule that matches decides,
and a path that no rule matches is an error.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calince_jax.errors import UserError

# How to shard: `replicate`; `fsdp`, the largest axis that the mesh axis `data`
# divides; or `model`, likewise for the mesh axis `model`, and then the largest
# of the other axes for `data`.
RULES = ("replicate", "fsdp", "model")


def make_mesh(devices: Sequence[jax.Device], model_parallel: int = 1) -> Mesh:
  """A (data, model) mesh over `devices`.

  Args:
    devices: of all processes, such as `jax.devices()`, or those of a topology
      that programs are compiled for.
    model_parallel: length of the `model` axis.

  Raises:
    UserError: `model_parallel` does not divide the number of devices, or JAX
      cannot arrange them so.
  """
  n = len(devices)
  if model_parallel < 1 or n % model_parallel:
    raise UserError(
      f"model_parallel={model_parallel} does not divide the {n} devices"
    )
  shape = (n // model_parallel, model_parallel)
  try:
    return jax.make_mesh(
      shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )
  except (ValueError, NotImplementedError, AssertionError) as error:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    raise UserError(
      f"model_parallel={model_parallel}: {n} devices of kind"
      f" {devices[0].device_kind!r} cannot be arranged as a mesh of {shape[0]}"
      f" x {shape[1]} ({reason}); choose another sharding.model_parallel"
    ) from error


def path_name(path: tuple) -> str:
  """A tree path as `a/b/c`, as in rules and reports."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(
  tree: Any,
  mesh: Mesh,
  rules: Sequence[tuple[str, str]],
  smallest: int = 2**14,
) -> Any:
  """A NamedSharding for each leaf of `tree`.

  Args:
    tree: of arrays or ShapeDtypeStructs.
    mesh: from `make_mesh`.
    rules: (regular expression, one of RULES); the expression is searched in
      the path of the leaf.
    smallest: leaves with fewer elements are replicated.

  Raises:
    UserError: no rule matches a path, or a rule is unknown.
  """

  def place(path, leaf):
    name = path_name(path)
    for pattern, rule in rules:
      if re.search(pattern, name):
        if rule not in RULES:
          raise UserError(
            f"sharding rule {rule!r} of {pattern!r} is unknown;"
            f" choose one of {list(RULES)}"
          )
        small = leaf.size < smallest
        rule = "replicate" if small else rule
        return NamedSharding(mesh, _spec(leaf.shape, rule, mesh))
    raise UserError(
      f"no sharding rule matches the parameter {name!r};"
      " add ('.*', 'replicate') as the last rule"
    )

  return jax.tree_util.tree_map_with_path(place, tree)


def _spec(shape, rule, mesh):
  axes = {"replicate": [], "fsdp": ["data"], "model": ["model", "data"]}[rule]
  spec = [None] * len(shape)
  for mesh_axis in axes:
    ways = mesh.shape[mesh_axis]
    fits = [
      i
      for i, length in enumerate(shape)
      if spec[i] is None and length % ways == 0 and length >= ways
    ]
    if fits and ways > 1:
      spec[max(fits, key=lambda i: shape[i])] = mesh_axis
  return P(*spec)


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on each device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis spread over `data`."""
  return NamedSharding(mesh, P("data"))


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's rows of a global batch, as arrays over the whole mesh."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in batch.items()
  }


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
  """Which rows of a global batch this process holds, int64, sorted."""
  places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  rows = [np.arange(batch_size)[index] for (index,) in places.values()]
  return np.unique(np.concatenate(rows))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """UserError unless each device and process gets the same number of rows."""
  ways = mesh.shape["data"]
  if batch_size % ways or batch_size < ways:
    raise UserError(
      f"batch_size={batch_size} is not a multiple of the {ways} devices that"
      " share it"
    )
