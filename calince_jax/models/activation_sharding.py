"""Where activations and weights lie on the devices, said where they flow.

Under `jax.jit` every array is global, and the mathematics is right on any mesh.
What each device holds is the compiler's choice unless it is said, and with
weights that are sharded over `data` (FSDP) the compiler may read them as tensor
parallelism: it then keeps activations of the whole global batch on every
device. So all models say the same here:

    activations [B, ...] are sharded over the mesh axis `data`, and
    a weight is gathered over `data`, in the dtype of the product, where it is
    used; its gradient is reduced and scattered again.

A mesh axis `model` splits the products of a block (tensor parallelism, Shoeybi
et al., 2019): the projections to queries, keys, values and to the MLP's hidden
layer by their outputs, heads and hidden units, so that a device computes with
its own part alone; the projections back by their inputs, so that their partial
results are summed over the axis once for attention and once for the MLP. What
the axis does not divide is computed whole on each of its devices.

The mesh is that of the context (runtime/sharding.py, `context_of`), which the
train step and the evaluations during training enter. Without one, as in
inference on one device, nothing is said.
"""

import functools
import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("slice", "data")  # those of them that the mesh has
MODEL_AXIS = "model"


def batch_axes() -> tuple[str, ...]:
  """The axes of the context's mesh that the batch is sharded over."""
  names = jax.sharding.get_abstract_mesh().axis_names
  return tuple(name for name in BATCH_AXES if name in names)


def spread(x: jax.Array, split: int | None = None) -> jax.Array:
  """[B, ...] with B sharded over the batch axes of the mesh.

  Args:
    x: of any shape.
    split: the axis of `x` that the mesh axis `model` divides, if it can.
  """
  axes = batch_axes()
  if not axes:
    return x
  return jax.lax.with_sharding_constraint(x, P(axes, *_model(x, split)[1:]))


def gathered(weight: jax.Array, split: int | None = None) -> jax.Array:
  """A weight whole on every device, as it is about to be multiplied.

  Its gradient is scattered over `data` again, along the first axis.

  Args:
    weight: of any shape.
    split: the axis of which each device has its part of `model`, if it can.
  """
  if not batch_axes():
    return weight
  whole, parts = _model(weight, split), _model(weight, split)
  if parts[0] is None and weight.shape[0] % _ways("data") == 0:
    parts[0] = "data"
  return _gather(weight, P(*whole), P(*parts))


def looked_up(table: jax.Array) -> jax.Array:
  """A table whole on every device, as rows of it are about to be taken.

  Its gradient is summed whole, before each device keeps its part: otherwise
  every device would gather the ids and gradients of the global batch, and add
  those that fall into its part.
  """
  if not batch_axes():
    return table
  return jax.lax.with_sharding_constraint(table, P())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(weight, whole, parts):
  """`weight` laid out as `whole`, its gradient as `parts`."""
  del parts
  return jax.lax.with_sharding_constraint(weight, whole)


def _gather_forward(weight, whole, parts):
  return _gather(weight, whole, parts), None


def _gather_backward(whole, parts, _, gradient):
  del whole
  return (jax.lax.with_sharding_constraint(gradient, parts),)


_gather.defvjp(_gather_forward, _gather_backward)


def _model(x, split):
  """The axes of a PartitionSpec, of which `split` may be over `model`."""
  split = _divided(x, split)
  return [MODEL_AXIS if axis == split else None for axis in range(x.ndim)]


def _divided(x, split):
  """`split` if the mesh has an axis `model` that divides it, else None."""
  ways = _ways(MODEL_AXIS)
  if split is None or ways == 1 or x.shape[split] % ways:
    return None
  return split


def _ways(name):
  return dict(jax.sharding.get_abstract_mesh().shape).get(name, 1)


def product(split: int | None = None) -> Callable[..., jax.Array]:
  """`jax.lax.dot_general` of activations [B, ...] with a gathered weight.

  The weight is brought to two axes, of which the larger is the first: FSDP
  shards that one, and TPUs scatter a sum along the outermost axis alone (else
  they send all of it to all devices, twice as much).

  Args:
    split: see `gathered`.
  """

  def dot_general(x, weight, dimension_numbers, **settings):
    (_, contracted), (batch, _) = dimension_numbers
    if batch or not batch_axes():
      return jax.lax.dot_general(x, weight, dimension_numbers, **settings)
    inputs = len(contracted)  # the first axes of Flax's kernels
    rows, columns = weight.shape[:inputs], weight.shape[inputs:]
    by = _divided(weight, split)
    by = None if by is None else int(by >= inputs)
    x = x.reshape(*x.shape[:-inputs], math.prod(rows))
    weight = weight.reshape(math.prod(rows), math.prod(columns))
    axis = 0  # that is contracted
    if max(columns) > max(rows):
      weight, axis = weight.T, 1
      by = None if by is None else 1 - by
    weight = gathered(weight, by)
    y = jax.lax.dot_general(
      x, weight, (((x.ndim - 1,), (axis,)), ((), ())), **settings
    )
    return y.reshape(*y.shape[:-1], *columns)

  return dot_general
