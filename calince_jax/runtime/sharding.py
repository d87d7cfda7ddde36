"""The mesh of a run, and the rules that shard its parameters over it.

One mesh with the axes `slice`, `data` and `model`. The batch is sharded over
`slice` and `data`. Parameters are sharded over `data` (FSDP), and over `model`
where a rule says so; each slice holds all of them, so that the fast network
inside a slice carries the weights, and the slow one between slices carries only
their gradients. A slice here is a TPU slice or, on larger ones, a part of one.
A run on one slice has no axis `slice`.

A rule is (regular expression over the path of a parameter, how to shard it);
the first rule that matches decides, and a path that no rule matches is an
error.
"""

import contextlib
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calince_jax.errors import UserError

# How to shard: `replicate`; `fsdp`, the largest axis that the mesh axis `data`
# divides; or `model`, likewise for the mesh axis `model` (of SPLIT_AXES where
# it can), and then the largest of the other axes for `data`.
RULES = ("replicate", "fsdp", "model")
# `model`: where the products of a block are split over the axis `model`, see
# models/activation_sharding.py, a device stores the part that it multiplies
# with. (Expression over the path, axis from the end.)
SPLIT_AXES = (
  (r"attention/(query|key|value)/kernel", -2),  # [width, heads, part]
  (r"attention/out/kernel", -3),  # [heads, part, width]
  (r"mlp/in/kernel", -1),
  (r"mlp/out/kernel", -2),
)
PAIRS_MULTIPLE = 3 * 2**11
# Parameters are sharded over at most so many devices, and over no fewer than
# the lower number where a group is divided. TPUs hold a matrix in tiles of 8 to
# 16 rows: finer shards (3 rows each of a width of 768 on 256 devices) are not
# gathered and scattered, but summed whole on every device.
GROUP_SIZES = (8, 16)
BATCH_AXES = ("slice", "data")  # those of them that a mesh has


def make_mesh(
  devices: Sequence[jax.Device], model_parallel: int = 1, slices: int = 0
) -> Mesh:
  """A (slice, data, model) mesh over `devices`, or (data, model) of one slice.

  Args:
    devices: of all processes, such as `jax.devices()`, or those of a topology
      that programs are compiled for.
    model_parallel: length of the `model` axis.
    slices: into how many groups of devices the mesh is divided, each with all
      parameters; a multiple of the groups that the network divides them into
      (TPU slices). 0: of each of those as many as make groups of GROUP_SIZES.

  Raises:
    UserError: the numbers do not divide the devices, or JAX cannot arrange
      them so.
  """
  n = len(devices)
  networks = num_networks(devices)
  slices = slices or networks * _groups(n // networks, model_parallel)
  if model_parallel < 1 or n % (slices * model_parallel) or slices % networks:
    raise UserError(
      f"model_parallel={model_parallel} and slices={slices} do not divide the"
      f" {n} devices, of {networks} slice(s)"
    )
  shape = (slices, n // slices // model_parallel, model_parallel)
  try:
    if networks > 1:
      inside = (slices // networks, *shape[1:])
      places = mesh_utils.create_hybrid_device_mesh(
        inside, (networks, 1, 1), devices, allow_split_physical_axes=True
      )
    else:
      places = mesh_utils.create_device_mesh(
        shape, devices, allow_split_physical_axes=True
      )
  except (ValueError, NotImplementedError, AssertionError) as error:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    raise UserError(
      f"{n} devices of kind {devices[0].device_kind!r} cannot be arranged as a"
      f" mesh of {' x '.join(map(str, shape))} ({reason}); choose another"
      " config.sharding.model_parallel or config.sharding.slices"
    ) from error
  axes = ("slice", "data", "model")
  if slices == 1:
    places, axes = places[0], axes[1:]
  return Mesh(places, axes, axis_types=(AxisType.Auto,) * len(axes))


def _groups(devices, model_parallel):
  """Into how many groups the devices of one network are divided."""
  ways = devices // max(model_parallel, 1)
  least, most = GROUP_SIZES
  fits = [d for d in range(least, most + 1) if ways % d == 0]
  return ways // max(fits) if ways > most and fits else 1


def num_networks(devices: Sequence[jax.Device]) -> int:
  """Groups of devices with a fast network inside: TPU slices."""
  return len({getattr(device, "slice_index", 0) for device in devices})


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
  """The axes that the batch is sharded over."""
  return tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)


def num_slices(mesh: Mesh) -> int:
  """Groups of devices that each hold all parameters."""
  return mesh.shape["slice"] if "slice" in mesh.axis_names else 1


def batch_ways(mesh: Mesh) -> int:
  """The number of parts that the batch is divided into."""
  return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


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
    rule = _rule_of(name, rules)
    if leaf.size < smallest:
      rule = "replicate"
    return NamedSharding(mesh, _spec(name, leaf.shape, rule, mesh))

  return jax.tree_util.tree_map_with_path(place, tree)


def _rule_of(name, rules):
  for pattern, rule in rules:
    if re.search(pattern, name):
      if rule not in RULES:
        raise UserError(
          f"sharding rule {rule!r} of {pattern!r} is unknown;"
          f" choose one of {list(RULES)}"
        )
      return rule
  raise UserError(
    f"no sharding rule matches the parameter {name!r};"
    " add ('.*', 'replicate') as the last rule"
  )


def _spec(name, shape, rule, mesh):
  axes = {"replicate": [], "fsdp": ["data"], "model": ["model", "data"]}[rule]
  spec = [None] * len(shape)
  for mesh_axis in axes:
    ways = mesh.shape[mesh_axis]
    fits = [
      i
      for i, length in enumerate(shape)
      if spec[i] is None and length % ways == 0 and length >= ways
    ]
    if mesh_axis == "model":
      split = [len(shape) + axis for axis in _split_axes(name)]
      fits = [i for i in split if i in fits] or fits
    if fits and ways > 1:
      spec[max(fits, key=lambda i: shape[i])] = mesh_axis
  return P(*spec)


def _split_axes(name):
  return [axis for pattern, axis in SPLIT_AXES if re.search(pattern, name)]


def padded(num_pairs: int) -> int:
  """`num_pairs` and some more, so that the usual numbers of devices divide it.

  It does not depend on the mesh, because a run may be resumed on another.
  """
  return -(-num_pairs // PAIRS_MULTIPLE) * PAIRS_MULTIPLE


def replicated_leaves(
  tree: Any,
  layout: Any,
  rules: Sequence[tuple[str, str]] = (),
  smallest: int = 2**14,
) -> list[tuple[str, int]]:
  """(path, bytes) of the larger leaves that every device holds whole.

  Args:
    tree: of arrays or ShapeDtypeStructs.
    layout: of `shardings`.
    rules: what they replicate is not listed.
    smallest: leaves with fewer elements are not listed.

  Returns:
    The largest first; nothing for a mesh of one device.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  places = jax.tree.leaves(layout)
  found = [
    (path_name(path), leaf.size * np.dtype(leaf.dtype).itemsize)
    for (path, leaf), place in zip(leaves, places, strict=True)
    if leaf.size >= smallest
    and place.is_fully_replicated
    and place.mesh.size > 1
    and not (rules and _rule_of(path_name(path), rules) == "replicate")
  ]
  return sorted(found, key=lambda leaf: -leaf[1])


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on each device."""
  return NamedSharding(mesh, P())


def context_of(mesh: Mesh) -> contextlib.AbstractContextManager:
  """The context in which models pin their activations to axes of `mesh`."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis sharded over `slice` and `data`."""
  return NamedSharding(mesh, P(batch_axes(mesh)))


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
  ways = batch_ways(mesh)
  if batch_size % ways or batch_size < ways:
    raise UserError(
      f"batch_size={batch_size} is not a multiple of the {ways} devices that"
      " share it"
    )
