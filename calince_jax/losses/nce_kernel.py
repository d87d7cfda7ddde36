"""Two GPU kernels for a tile of similarities, which is never written to memory.

    reduce_tile     the sums of a tile's rows and columns
    gradient_tile   dL/dS of a tile, from the sums of the whole

Each program computes one block of S in registers and uses it there. In the
forward pass nothing as large as the tile leaves the chip; in the backward pass
only dL/dS does, in the dtype of the two matrix products that follow. They are
Pallas kernels for Triton, for `Tiling.kernel` of tiled_nce.py, and import
nothing of the project. Without a GPU they are interpreted, slowly, for tests.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

BLOCK = 64  # pairs: a tile is cut into blocks of BLOCK x BLOCK
DEPTH = 64  # dimensions of the embedding that are multiplied at a time


def check(side: int, depth: int) -> None:
  """ValueError unless the kernel can cut a tile of [side, depth] embeddings."""
  if side % BLOCK or depth % DEPTH:
    raise ValueError(
      f"the kernel needs tiles of a multiple of {BLOCK} pairs and embeddings of"
      f" a multiple of {DEPTH} numbers, not {side} and {depth}"
    )


def reduce_tile(
  videos: tuple[jax.Array, jax.Array],
  texts: tuple[jax.Array, jax.Array],
  scale: jax.Array,
  bias: jax.Array,
  reduction: str,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  """The maximum and the sum of each row, and of each column, of a tile.

  S_ij = scale <video_i, text_j> + bias, left out where the ids are equal.

  Args:
    videos: embeddings [T, D], float32 or bfloat16, and ids, int32 [T].
    texts: likewise.
    scale: float32 [].
    bias: float32 [].
    reduction: `logsumexp`, the sum of exp(S - maximum), or `softplus`.

  Returns:
    (maximum, sum) of the rows and of the columns, float32 [T] each.

  Raises:
    ValueError: see `check`.
  """
  T = len(videos[0])
  check(T, videos[0].shape[1])
  count = T // BLOCK
  by_row = jax.ShapeDtypeStruct((T, count), jnp.float32)
  by_column = jax.ShapeDtypeStruct((count, T), jnp.float32)
  row = pl.BlockSpec((BLOCK, 1), lambda i, j: (i, j))
  column = pl.BlockSpec((1, BLOCK), lambda i, j: (i, j))
  blocks = _call(
    functools.partial(_reduce_block, reduction=reduction),
    count,
    (by_row, by_row, by_column, by_column),
    (row, row, column, column),
    [],
  )(*_arguments(videos, texts, scale, bias))

  def join(largest, total, axis):  # over the blocks
    if reduction == "softplus":
      return largest.max(axis=axis), total.sum(axis=axis)
    top = largest.max(axis=axis, keepdims=True)
    shift = jnp.where(jnp.isneginf(top), 0.0, top)
    total = (total * jnp.exp(largest - shift)).sum(axis=axis)
    return jnp.squeeze(top, axis), total

  return join(*blocks[:2], 1), join(*blocks[2:], 0)


def gradient_tile(
  videos: tuple[jax.Array, jax.Array],
  texts: tuple[jax.Array, jax.Array],
  scale: jax.Array,
  bias: jax.Array,
  rows: tuple[jax.Array, jax.Array],
  columns: tuple[jax.Array, jax.Array],
  reduction: str,
) -> jax.Array:
  """dL/dS of a tile, [T, T] in the dtype of the embeddings.

  Args:
    videos: see `reduce_tile`.
    texts: see `reduce_tile`.
    scale: see `reduce_tile`.
    bias: see `reduce_tile`.
    rows: R, the finite sums over whole rows of S, and dL/dR; float32 [T].
    columns: C and dL/dC, likewise.
    reduction: see `reduce_tile`.

  Raises:
    ValueError: see `check`.
  """
  T, dtype = len(videos[0]), videos[0].dtype
  check(T, videos[0].shape[1])
  first = pl.BlockSpec((BLOCK,), lambda i, j: (i,))
  second = pl.BlockSpec((BLOCK,), lambda i, j: (j,))
  return _call(
    functools.partial(_gradient_block, reduction=reduction),
    T // BLOCK,
    jax.ShapeDtypeStruct((T, T), dtype),
    pl.BlockSpec((BLOCK, BLOCK), lambda i, j: (i, j)),
    [first, first, second, second],
  )(*_arguments(videos, texts, scale, bias), *rows, *columns)


def _arguments(videos, texts, scale, bias):
  return *videos, *texts, scale.reshape(1), bias.reshape(1)


def _call(kernel, count, out_shape, out_specs, more_specs):
  first, second = (lambda i, j: (i, 0)), (lambda i, j: (j, 0))

  def call(video, *rest):
    D = video.shape[1]
    in_specs = [
      pl.BlockSpec((BLOCK, D), first),
      pl.BlockSpec((BLOCK,), lambda i, j: (i,)),
      pl.BlockSpec((BLOCK, D), second),
      pl.BlockSpec((BLOCK,), lambda i, j: (j,)),
      pl.BlockSpec((1,), lambda i, j: (0,)),
      pl.BlockSpec((1,), lambda i, j: (0,)),
      *more_specs,
    ]

    def run(interpret):
      return pl.pallas_call(
        kernel,
        grid=(count, count),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
      )

    return jax.lax.platform_dependent(
      video, *rest, cuda=run(False), default=run(True)
    )

  return call


def _similarities(video, v_ids, text, t_ids, scale, bias):
  """A block of S, float32 [BLOCK, BLOCK]; -inf where left out."""
  full = video.dtype == jnp.float32

  def part(k, S):
    depth = pl.ds(k * DEPTH, DEPTH)
    return S + jax.lax.dot_general(
      video[:, depth],
      text[:, depth],
      (((1,), (1,)), ((), ())),
      precision=jax.lax.Precision.HIGHEST if full else None,
      preferred_element_type=jnp.float32,
    )

  S = jnp.zeros((BLOCK, BLOCK), jnp.float32)
  S = jax.lax.fori_loop(0, video.shape[1] // DEPTH, part, S)
  left_out = v_ids[:][:, None] == t_ids[:][None, :]
  return jnp.where(left_out, -jnp.inf, scale[0] * S + bias[0])


def _reduce_block(
  video,
  v_ids,
  text,
  t_ids,
  scale,
  bias,
  row_max,
  row_sum,
  column_max,
  column_sum,
  *,
  reduction,
):
  S = _similarities(video, v_ids, text, t_ids, scale, bias)
  for axis, largest, total in (
    (1, row_max, row_sum),
    (0, column_max, column_sum),
  ):
    top = S.max(axis=axis, keepdims=True)
    largest[...] = top
    if reduction == "softplus":
      terms = _softplus(S)
    else:
      terms = jnp.exp(S - jnp.where(top == -jnp.inf, 0.0, top))
    total[...] = terms.sum(axis=axis, keepdims=True)


def _gradient_block(
  video, v_ids, text, t_ids, scale, bias, R, gR, C, gC, out, *, reduction
):
  S = _similarities(video, v_ids, text, t_ids, scale, bias)
  row, column = gR[:][:, None], gC[:][None, :]
  if reduction == "softplus":
    G = (row + column) / (1.0 + jnp.exp(-S))
  else:
    G = row * jnp.exp(S - R[:][:, None]) + column * jnp.exp(S - C[:][None, :])
  out[...] = G.astype(out.dtype)


def _softplus(S):
  return jnp.maximum(S, 0.0) + jnp.log(1.0 + jnp.exp(-jnp.abs(S)))
