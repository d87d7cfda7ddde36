"""Other implementations of the contrastive loss, to measure ours against.

Each takes the global video, text [N, D], the confidences [N] and the inverse
temperature, and returns the same number; what differs is what each device
computes, holds and sends.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from calince_jax.losses.calibrated_nce import calibrated_nce
from calince_jax.losses.tiled_nce import tiled_calibrated_nce


def ours(mesh: Mesh, **tiling) -> Callable:
  """losses/tiled_nce.py."""
  return functools.partial(
    tiled_calibrated_nce, mesh=mesh, axis=mesh.axis_names, **tiling
  )


def naive(mesh: Mesh) -> Callable:
  """losses/calibrated_nce.py; the compiler shards S."""
  del mesh
  return calibrated_nce


def all_gather(mesh: Mesh) -> Callable:
  """Each device gathers all embeddings: open_clip's `local_loss`."""
  axis = mesh.axis_names

  def local(video, text, w, scale):
    videos, texts = (
      jax.lax.all_gather(x, axis, tiled=True) for x in (video, text)
    )
    rows, columns = (
      scale * _product(video, texts),
      scale * _product(text, videos),
    )
    d = scale * (video * text).sum(axis=1)
    l = jax.nn.logsumexp(rows, axis=1) + jax.nn.logsumexp(columns, axis=1)
    return _weighted(0.5 * l - d, w, axis)

  return _shared(local, mesh)


def ring(mesh: Mesh) -> Callable:
  """Texts go round a ring; each step is checkpointed and differentiated."""
  axis, ways = mesh.axis_names, mesh.size
  order = [(i, (i + 1) % ways) for i in range(ways)]

  def local(video, text, w, scale):
    @jax.checkpoint
    def step(carry, _):
      t, rows, columns = carry
      S = scale * _product(video, t)
      rows = jnp.logaddexp(rows, jax.nn.logsumexp(S, axis=1))
      columns = jnp.logaddexp(columns, jax.nn.logsumexp(S, axis=0))
      t, columns = (jax.lax.ppermute(x, axis, order) for x in (t, columns))
      return (t, rows, columns), None

    nothing = jnp.full(w.shape, -1e30)
    nothing = jax.lax.pcast(nothing, axis, to="varying")
    (_, rows, columns), _ = jax.lax.scan(
      step, (text, nothing, nothing), length=ways
    )
    d = scale * (video * text).sum(axis=1)
    return _weighted(0.5 * (rows + columns) - d, w, axis)

  return _shared(local, mesh)


PEERS = {"naive": naive, "all_gather": all_gather, "ring": ring}


def _product(x, y):
  return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def _weighted(l, w, axis):
  w = jax.lax.stop_gradient(w)
  return jax.lax.psum((w * l).sum(), axis) / jax.lax.psum(w.sum(), axis)


def _shared(local, mesh):
  rows = P(mesh.axis_names)
  return jax.shard_map(
    local, mesh=mesh, in_specs=(rows, rows, rows, P()), out_specs=P()
  )


def value_and_grad(loss: Callable, mesh: Mesh) -> Callable:
  """Jitted; gradients of video, text and scale, sharded over the mesh."""
  rows = jax.NamedSharding(mesh, P(mesh.axis_names))
  whole = jax.NamedSharding(mesh, P())
  return jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1, 3)),
    in_shardings=(rows, rows, rows, whole),
    out_shardings=(whole, (rows, rows, whole)),
  )
