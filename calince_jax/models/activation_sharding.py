"""Where activations and weights lie on the devices, said where they flow.

Under `jax.jit` every array is global, and the mathematics is right on any mesh.
What each device holds is the compiler's choice unless it is said, and with
weights that are sharded over `data` (FSDP) the compiler may read them as tensor
parallelism: it then keeps activations of the whole global batch on every
device. So all models say the same two things here:

    activations [B, ...] are sharded over the mesh axis `data`, and
    a weight is gathered over all axes, in the dtype of the product, where it is
    used; its gradient is reduced and scattered again. So an axis `model` cuts
    the storage of the weights, not their products.

The mesh is that of the context (`jax.sharding.use_abstract_mesh`, which the
train step enters). Without one, as in inference and in the evaluations during
training, nothing is said.
"""

from typing import Any

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("slice", "data")  # those of them that the mesh has


def batch_axes() -> tuple[str, ...]:
  """The axes of the context's mesh that the batch is sharded over."""
  names = jax.sharding.get_abstract_mesh().axis_names
  return tuple(name for name in BATCH_AXES if name in names)


def spread(x: jax.Array) -> jax.Array:
  """[B, ...], of any shape, with B sharded over the batch axes of the mesh."""
  axes = batch_axes()
  if not axes:
    return x
  return jax.lax.with_sharding_constraint(x, P(axes))


def gathered(weight: jax.Array) -> jax.Array:
  """A weight whole on every device, as it is about to be multiplied."""
  if not batch_axes():
    return weight
  return jax.lax.with_sharding_constraint(weight, P())


def dot_general(
  x: jax.Array, weight: jax.Array, *arguments: Any, **settings: Any
) -> jax.Array:
  """`jax.lax.dot_general` of activations [B, ...] with a gathered weight."""
  return jax.lax.dot_general(x, gathered(weight), *arguments, **settings)
