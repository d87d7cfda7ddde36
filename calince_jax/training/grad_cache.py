"""A large batch through the encoders part by part, its negatives kept.

Contrastive losses need the embeddings of the whole batch at once, but not the
encoders' activations. So the batch is encoded in parts, nothing but the outputs
is kept, and backward each part is encoded again. The gradient is that of the
whole batch: GradCache (Gao, Zhang, Han, Callan, 2021), here as a scan whose
body is checkpointed. It costs one more pass through the encoders.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def in_micro_batches(
  encode: Callable[[Any, jax.Array], Any],
  batch: Any,
  key: jax.Array,
  *,
  parts: int,
  mesh: Mesh | None,
) -> Any:
  """`encode(batch, key)`, with the activations of one part at a time.

  Args:
    encode: of arrays [b, ...] and a random key; pairs do not see each other,
      and each output is [b, ...] too, or [] and the same for every part.
    batch: a tree of arrays [B, ...].
    key: part k gets `fold_in(key, k)`, forward and backward alike; a single
      part gets the key itself.
    parts: how many; it divides the pairs of each device.
    mesh: over whose axis `data` the batch is spread; None: one device. Each
      part has pairs of every device, so that none is idle.

  Returns:
    The outputs, [B, ...], in the order of the batch.

  Raises:
    ValueError: `parts` does not divide the pairs of a device.
  """
  if parts == 1:
    return encode(batch, key)
  ways = 1 if mesh is None else mesh.shape["data"]
  B = len(jax.tree.leaves(batch)[0])
  if B % (ways * parts):
    raise ValueError(
      f"{parts} micro-batches cannot share {B} pairs on {ways} devices equally"
    )

  def spread(x, axis):
    if mesh is None:
      return x
    place = NamedSharding(mesh, P(*[None] * axis, "data"))
    return jax.lax.with_sharding_constraint(x, place)

  def part(x):  # [B, ...] -> [parts, B / parts, ...]
    x = x.reshape(ways, parts, B // (ways * parts), *x.shape[1:])
    return spread(x.swapaxes(0, 1).reshape(parts, -1, *x.shape[3:]), 1)

  def join(x):
    if x.ndim == 1:
      return x[0]
    x = x.reshape(parts, ways, B // (ways * parts), *x.shape[2:])
    return spread(x.swapaxes(0, 1).reshape(B, *x.shape[3:]), 0)

  @jax.checkpoint
  def step(_, numbered):
    k, one = numbered
    return None, encode(one, jax.random.fold_in(key, k))

  numbers = jax.numpy.arange(parts)
  _, outputs = jax.lax.scan(step, None, (numbers, jax.tree.map(part, batch)))
  return jax.tree.map(join, outputs)
