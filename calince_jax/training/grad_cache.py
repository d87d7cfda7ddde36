"""Grad cache: encodes a large batch in chunks, with the whole batch's gradient.

Contrastive losses need the embeddings of the whole batch at once, but not the
encoders' activations. So the batch is encoded chunk by chunk and only the
outputs are stored; the backward pass encodes each chunk again. The gradient is
that of the whole batch, and all its pairs remain negatives of each other:
GradCache (Gao, Zhang, Han, Callan, 2021), here as a scan whose body is
checkpointed. It costs one more forward pass through the encoders.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calince_jax.runtime.sharding import batch_axes, batch_ways


def encode_in_chunks(
  encode: Callable[[Any, jax.Array], Any],
  batch: Any,
  key: jax.Array,
  *,
  num_chunks: int,
  mesh: Mesh | None,
) -> Any:
  """`encode(batch, key)`, with the activations of one chunk at a time.

  Args:
    encode: a function of a tree of arrays [b, ...] and a random key. Each row
      of its outputs [b, ...] depends on the same row of its inputs only; an
      output of shape [] must be the same for every chunk.
    batch: a tree of arrays [B, ...].
    key: chunk k gets `fold_in(key, k)`, in the forward and the backward pass;
      a single chunk gets the key itself.
    num_chunks: divides the number of pairs on each device.
    mesh: the batch is sharded over its batch axes; None: one device. Each
      chunk has pairs of every device, so that none is idle.

  Returns:
    The outputs, [B, ...], in the order of the batch.

  Raises:
    ValueError: `num_chunks` does not divide the pairs of a device.
  """
  if num_chunks == 1:
    return encode(batch, key)
  devices = 1 if mesh is None else batch_ways(mesh)
  B = len(jax.tree.leaves(batch)[0])
  if B % (devices * num_chunks):
    raise ValueError(
      f"{B} pairs on {devices} devices cannot be split into {num_chunks} equal"
      " chunks"
    )
  b = B // (devices * num_chunks)  # pairs of a chunk on each device

  def shard(x, axis):
    if mesh is None:
      return x
    sharding = NamedSharding(mesh, P(*[None] * axis, batch_axes(mesh)))
    return jax.lax.with_sharding_constraint(x, sharding)

  def split(x):  # [B, ...] -> [num_chunks, B / num_chunks, ...]
    x = x.reshape(devices, num_chunks, b, *x.shape[1:])
    return shard(x.swapaxes(0, 1).reshape(num_chunks, -1, *x.shape[3:]), 1)

  def join(x):  # [num_chunks, B / num_chunks, ...] -> [B, ...]
    if x.ndim == 1:
      return x[0]
    x = x.reshape(num_chunks, devices, b, *x.shape[2:])
    return shard(x.swapaxes(0, 1).reshape(B, *x.shape[3:]), 0)

  @jax.checkpoint
  def encode_chunk(_, numbered):
    k, chunk = numbered
    return None, encode(chunk, jax.random.fold_in(key, k))

  numbers = jax.numpy.arange(num_chunks)
  chunks = jax.tree.map(split, batch)
  _, outputs = jax.lax.scan(encode_chunk, None, (numbers, chunks))
  return jax.tree.map(join, outputs)
