"""The calibrated NCE in tiles: the same value, without storing the N x N S.

    S_ij = logit_scale * <video_i, text_j> + logit_bias
    R_i  = logsumexp_{j != i} S_ij,      C_j = logsumexp_{i != j} S_ij
    l_i  = 1/2 [ logaddexp(R_i, S_ii) + logaddexp(C_i, S_ii) ] - S_ii
    L    = sum_i w_i l_i / sum_i w_i

Each device holds n pairs. Its videos stay; the texts move round a ring, one
device per ring step, together with the sums of their columns, so one pass over
S gives both directions. S is computed tile by tile and not stored: the forward
pass saves only R and C, and the backward pass computes each tile again,

    dL/dS_ij = dL/dR_i exp(S_ij - R_i) + dL/dC_j exp(S_ij - C_j),

so memory grows with n, not with n N. While a ring step computes, the next texts
are transferred, and in the backward pass the texts' gradients of the ring step
before.

Recomputing in blocks is the idea of FlashAttention (Dao et al., 2022), the ring
that of Ring Attention (Liu, Zaharia, Abbeel, 2023); Inf-CL (Cheng et al., 2024)
tiles a contrastive loss. This file imports nothing of the project, so it can be
copied into another one. docs/method.md
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

REDUCTIONS = ("logsumexp", "softplus")
MATMUL_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How S is cut into tiles and spread over devices; hashable and static.

  Attributes:
    mesh: the devices that share the pairs; None: one device, or all pairs on
      each.
    axis: the mesh axis, or axes, over which the pairs are sharded.
    tile: pairs along the side of a tile, used up to the n pairs of a device; it
      need not divide n.
    matmul_dtype: the dtype of the factors of the matrix products, one of
      MATMUL_DTYPES; float32 products have full precision. Sums are float32.
    max_saved_bytes: on each device. If all its tiles of S fit, they are saved
      for the backward pass, which then needs three matrix products, not four.
    kernel: a module with the functions of nce_kernel.py, which computes a tile;
      None: XLA does. A kernel needs `tile` to divide n and saves no tiles.

  Raises:
    ValueError: an unknown dtype or axis, or a tile below 1.
  """

  mesh: Mesh | None = None
  axis: str | Sequence[str] = "data"
  tile: int = 1024
  matmul_dtype: str = "float32"
  max_saved_bytes: int = 8 * 2**20
  kernel: Any = None

  def __post_init__(self):
    if self.matmul_dtype not in MATMUL_DTYPES:
      raise ValueError(
        f"matmul_dtype={self.matmul_dtype!r} is unknown; choose one of"
        f" {list(MATMUL_DTYPES)}"
      )
    if self.tile < 1:
      raise ValueError(f"tile={self.tile} must be at least 1")
    axes = (self.axis,) if isinstance(self.axis, str) else tuple(self.axis)
    object.__setattr__(self, "axis", axes)
    known = () if self.mesh is None else self.mesh.axis_names
    if self.mesh is not None and not set(axes) <= set(known):
      raise ValueError(f"the mesh has the axes {list(known)}, not {list(axes)}")

  @property
  def num_devices(self) -> int:
    """The number of devices over which the pairs are sharded."""
    if self.mesh is None:
      return 1
    return math.prod(self.mesh.shape[axis] for axis in self.axis)


def tiled_calibrated_nce(
  video: jax.Array,
  text: jax.Array,
  confidence: jax.Array,
  logit_scale: jax.Array | float,
  *,
  pair_ids: jax.Array | None = None,
  **tiling: Any,
) -> jax.Array:
  """The calibrated contrastive loss of a batch of pairs, in bounded memory.

  Value and gradients are those of calibrated_nce.py.

  Args:
    video: [N, D], L2-normalised video embeddings, any float dtype.
    text: [N, D], L2-normalised text embeddings; text i was given with video i.
    confidence: [N], >= 0: the weight w of each pair. No gradient flows into
      it. Only ratios matter; all 0 gives loss 0 and gradient 0.
    logit_scale: [], > 0, the inverse temperature.
    pair_ids: int32 [N]; pairs with equal ids are left out as negatives of each
      other. None: all differ.
    **tiling: the fields of Tiling.

  Returns:
    float32 [], in nats.

  Raises:
    ValueError: the shapes do not agree, or the devices do not divide N.
  """
  _check_pairs(video, text)
  if confidence.shape != video.shape[:1]:
    raise ValueError(
      f"confidence {confidence.shape} must be [N] = {video.shape[:1]}"
    )
  l = tiled_pair_losses(video, text, logit_scale, pair_ids=pair_ids, **tiling)
  w = jax.lax.stop_gradient(confidence.astype(jnp.float32))
  w = _shard_rows(w, Tiling(**tiling))
  total = w.sum()
  return (w * l).sum() / jnp.where(total > 0, total, 1.0)


def tiled_pair_losses(
  video: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array | float,
  *,
  pair_ids: jax.Array | None = None,
  **tiling: Any,
) -> jax.Array:
  """l_i, the symmetric InfoNCE of each pair, float32 [N] in nats.

  Arguments and errors: see `tiled_calibrated_nce`.
  """
  sums = similarity_sums(
    video, text, logit_scale, pair_ids=pair_ids, tiling=Tiling(**tiling)
  )
  d = sums["diagonal"]
  # softplus(R - d) = logaddexp(R, d) - d, exact also where the loss is tiny.
  return 0.5 * (
    jax.nn.softplus(sums["rows"] - d) + jax.nn.softplus(sums["columns"] - d)
  )


def tiled_siglip(
  video: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array | float,
  logit_bias: jax.Array | float,
  *,
  pair_ids: jax.Array | None = None,
  **tiling: Any,
) -> jax.Array:
  """SigLIP's loss of each pair, float32 [N] in nats; S includes logit_bias.

    l_i = softplus(-S_ii) + 1/2 sum_{j != i} [softplus(S_ij) + softplus(S_ji)]

  The mean over i is the loss of Zhai et al. (ICCV 2023). Arguments and errors:
  see `tiled_calibrated_nce` and `similarity_sums`.
  """
  sums = similarity_sums(
    video,
    text,
    logit_scale,
    logit_bias,
    pair_ids=pair_ids,
    reduction="softplus",
    tiling=Tiling(**tiling),
  )
  return jax.nn.softplus(-sums["diagonal"]) + 0.5 * (
    sums["rows"] + sums["columns"]
  )


def similarity_sums(
  video: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array | float,
  logit_bias: jax.Array | float = 0.0,
  *,
  pair_ids: jax.Array | None = None,
  reduction: str = "logsumexp",
  tiling: Tiling | None = None,
) -> dict[str, jax.Array]:
  """The diagonal of S and sums over its rows and columns, in bounded memory.

  They are differentiable, so every loss that is a function of S_ii and of these
  sums is: InfoNCE, RINCE, GCE, the mixture, SigLIP.

  Args:
    video: [N, D], any float dtype.
    text: [N, D].
    logit_scale: [], > 0.
    logit_bias: [], added to every entry of S.
    pair_ids: int32 [N]; S_ij is left out of the sums where i and j have equal
      ids, and always where i = j. None: all differ.
    reduction: one of REDUCTIONS: `logsumexp`, which is -inf where no entry
      remains, or the sum of `softplus`.
    tiling: see Tiling; None: its defaults.

  Returns:
    float32 [N] each: `diagonal`, S_ii; `rows`, over the texts j of video i;
    `columns`, over the videos i of text j; `row_max` and `column_max`, the
    largest entries of the same rows and columns, without gradient.

  Raises:
    ValueError: the shapes do not agree, the devices do not divide N, the kernel
      cannot compute such tiles, or the reduction is unknown.
  """
  tiling = Tiling() if tiling is None else tiling
  _check_pairs(video, text)
  N = len(video)
  if N % tiling.num_devices:
    raise ValueError(
      f"{tiling.num_devices} devices cannot share {N} pairs equally"
    )
  if reduction not in REDUCTIONS:
    raise ValueError(
      f"reduction={reduction!r} is unknown; choose one of {list(REDUCTIONS)}"
    )
  if tiling.kernel is not None:
    n = N // tiling.num_devices
    count, side = _count(n, tiling)
    if count * side != n:
      raise ValueError(
        f"tiles of {side} do not divide a device's {n} pairs, which a kernel"
        " needs"
      )
    tiling.kernel.check(side, video.shape[1])
  if pair_ids is None:
    pair_ids = jnp.arange(N, dtype=jnp.int32)
  elif pair_ids.shape != (N,):
    raise ValueError(f"pair_ids {pair_ids.shape} must be [N] = {(N,)}")
  if tiling.matmul_dtype == "bfloat16":  # here, to halve the ring's traffic
    video, text = video.astype(jnp.bfloat16), text.astype(jnp.bfloat16)
  video, text, pair_ids = _shard_rows((video, text, pair_ids), tiling)
  scale, bias = jnp.float32(logit_scale), jnp.float32(logit_bias)
  rows, columns, row_max, column_max = _sums(
    video, text, scale, bias, pair_ids, reduction, tiling
  )
  pairs = video.astype(jnp.float32) * text.astype(jnp.float32)
  return {
    "diagonal": scale * pairs.sum(axis=1) + bias,
    "rows": rows,
    "columns": columns,
    "row_max": jax.lax.stop_gradient(row_max),
    "column_max": jax.lax.stop_gradient(column_max),
  }


def _check_pairs(video, text):
  if video.ndim != 2 or video.shape != text.shape:
    raise ValueError(
      f"video {video.shape} and text {text.shape} must both be [N, D]"
    )


def _shard_rows(tree, tiling):
  """Shards the rows as `shard_map` needs them, on a mesh of explicit axes."""
  explicit = jax.sharding.AxisType.Explicit
  if tiling.mesh is None or explicit not in tiling.mesh.axis_types:
    return tree
  return jax.reshard(tree, NamedSharding(tiling.mesh, P(tiling.axis)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _sums(video, text, scale, bias, ids, reduction, tiling):
  """rows, columns, row_max, column_max, float32 [N] each."""
  inputs = (video, text, scale, bias, ids)
  return _forward(inputs, reduction, tiling, save=False)[0]


def _sums_forward(video, text, scale, bias, ids, reduction, tiling):
  n = len(video) // tiling.num_devices
  count, T = _count(n, tiling)
  save = 4 * tiling.num_devices * (count * T) ** 2 <= tiling.max_saved_bytes
  save = save and tiling.kernel is None
  inputs = (video, text, scale, bias, ids)
  sums, S = _forward(inputs, reduction, tiling, save=save)
  return sums, (inputs, sums[:2], S)


def _sums_backward(reduction, tiling, saved, gradients):
  inputs, sums, S = saved
  video, text, scale, _, _ = inputs
  d_video, d_text, d_bias = _backward(
    inputs, sums, gradients[:2], S, reduction, tiling
  )
  # S = scale <v, t> + bias, and d_video = scale sum_j (dL/dS_ij) t_j.
  d_scale = (video.astype(jnp.float32) * d_video).sum() / scale
  return (
    d_video.astype(video.dtype),
    d_text.astype(text.dtype),
    d_scale,
    d_bias,
    None,
  )


_sums.defvjp(_sums_forward, _sums_backward)


def _forward(inputs, reduction, tiling, *, save):
  """(rows, columns, row_max, column_max), and the tiles of S or None."""

  def local(video, text, scale, bias, ids):
    n = len(video)
    tiles = _Tiles(n, tiling)

    def step(carry, _):
      texts, rows, columns = carry
      next_texts = _to_next_device(texts, tiling)

      def down(carry, a):
        rows, columns = carry

        def along(carry, b):
          row, columns = carry
          S = None
          if tiling.kernel is None:
            S = tiles.similarities((video, ids), texts, scale, bias, a, b)
            parts = _reduce(S, 1, reduction), _reduce(S, 0, reduction)
          else:
            parts = tiling.kernel.reduce_tile(
              tiles.get((video, ids), a),
              tiles.get(texts, b),
              scale,
              bias,
              reduction,
            )
          row = _merge(row, parts[0], reduction)
          column = _merge(tiles.get(columns, b), parts[1], reduction)
          return (row, tiles.put(columns, column, b)), (S if save else None)

        carry = tiles.get(rows, a), columns
        (row, columns), S = jax.lax.scan(along, carry, tiles.numbers)
        return (tiles.put(rows, row, a), columns), S

      (rows, columns), S = jax.lax.scan(down, (rows, columns), tiles.numbers)
      return (next_texts, rows, _to_next_device(columns, tiling)), S

    empty = jnp.full((n,), -jnp.inf), jnp.zeros((n,))
    carry = (text, ids), empty, empty
    (_, rows, columns), S = jax.lax.scan(step, carry, length=tiling.num_devices)
    totals = _total(rows, reduction), _total(columns, reduction)
    return (*totals, rows[0], columns[0]), S

  in_specs = (True, True, False, False, True)
  out_specs = ((True,) * 4, True if save else None)
  return _shard_map(local, tiling, in_specs, out_specs)(*inputs)


def _backward(inputs, sums, gradients, S, reduction, tiling):
  """d_video, d_text, float32 [N, D], and d_bias []."""

  def local(video, text, scale, bias, ids, sums, gradients, S):
    tiles = _Tiles(len(video), tiling)
    # Without negatives the sum is -inf, as is S, and exp(S - sum) must be 0.
    R, C = (jnp.where(jnp.isneginf(x), 0.0, x) for x in sums)
    gR, gC = gradients

    def step(carry, S):
      texts, d_sent, d_video, d_bias = carry
      next_texts, d_received = _to_next_device((texts, d_sent), tiling)
      t, t_ids, C, gC = texts

      def down(carry, a_and_S):
        d_video, d_text, d_bias = carry
        a, S = a_and_S
        v, R_a, gR_a = tiles.get((video, R, gR), a)

        def along(carry, b_and_S):
          d_v, d_text, d_bias = carry
          b, S = b_and_S
          t_b, C_b, gC_b = tiles.get((t, C, gC), b)
          if tiling.kernel is not None:
            G = tiling.kernel.gradient_tile(
              (v, tiles.get(ids, a)),
              (t_b, tiles.get(t_ids, b)),
              scale,
              bias,
              (R_a, gR_a),
              (C_b, gC_b),
              reduction,
            )
          else:
            if S is None:
              S = tiles.similarities(
                (video, ids), (t, t_ids), scale, bias, a, b
              )
            G = _gradient(S, (R_a, gR_a), (C_b, gC_b), reduction)
          if reduction == "softplus":  # InfoNCE does not depend on the bias
            d_bias += G.astype(jnp.float32).sum()
          d_v += scale * tiles.product("ij,jd->id", G, t_b)
          d_t = scale * tiles.product("ij,id->jd", G, v)
          d_text = tiles.put(d_text, tiles.get(d_text, b) + d_t, b)
          return (d_v, d_text, d_bias), None

        carry = tiles.get(d_video, a), d_text, d_bias
        (d_v, d_text, d_bias), _ = jax.lax.scan(
          along, carry, (tiles.numbers, S)
        )
        return (tiles.put(d_video, d_v, a), d_text, d_bias), None

      carry = d_video, jnp.zeros_like(d_video), d_bias
      (d_video, d_text, d_bias), _ = jax.lax.scan(
        down, carry, (tiles.numbers, S)
      )
      return (next_texts, d_received + d_text, d_video, d_bias), None

    zeros = jnp.zeros(video.shape, jnp.float32)
    carry = (text, ids, C, gC), zeros, zeros, jnp.float32(0.0)
    (_, d_text, d_video, d_bias), _ = jax.lax.scan(
      step, carry, S, length=tiling.num_devices
    )
    if tiling.num_devices > 1:
      d_bias = jax.lax.psum(d_bias, tiling.axis)
    return d_video, _to_next_device(d_text, tiling), d_bias

  two = (True, True)
  in_specs = (True, True, False, False, True, two, two, S is not None or None)
  return _shard_map(local, tiling, in_specs, (True, True, False))(
    *inputs, sums, gradients, S
  )


def _shard_map(function, tiling, in_specs, out_specs):
  """`function` of each device's rows; spec True: sharded, False: replicated."""
  if tiling.mesh is None:
    return function
  in_specs, out_specs = jax.tree.map(
    lambda rows: P(tiling.axis) if rows else P(), (in_specs, out_specs)
  )
  return jax.shard_map(
    function,
    mesh=tiling.mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=False,
  )


def _to_next_device(tree, tiling):
  """Sends the arrays to the next device of the ring."""
  if tiling.num_devices == 1:
    return tree
  ring = [(i, (i + 1) % tiling.num_devices) for i in range(tiling.num_devices)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, tiling.axis, ring), tree)


def _reduce(S, axis, reduction):
  """(maximum, sum) along an axis of a tile; see `_merge`."""
  largest = S.max(axis=axis)
  if reduction == "softplus":
    return largest, jax.nn.softplus(S).sum(axis=axis)
  # -inf, where every entry is left out, would give -inf + inf.
  shift = jnp.where(jnp.isneginf(largest), 0.0, largest)
  return largest, jnp.exp(S - jnp.expand_dims(shift, axis)).sum(axis=axis)


def _merge(some, others, reduction):
  """(maximum [n], sum [n]) of two such; the sum is of exp(S - maximum), or of
  softplus(S)."""
  largest = jnp.maximum(some[0], others[0])
  if reduction == "softplus":
    return largest, some[1] + others[1]
  shift = jnp.where(jnp.isneginf(largest), 0.0, largest)
  total = sum(total * jnp.exp(top - shift) for top, total in (some, others))
  return largest, total


def _gradient(S, rows, columns, reduction):
  """dL/dS of a tile; see the top of this file."""
  (R, gR), (C, gC) = rows, columns
  if reduction == "softplus":
    return (gR[:, None] + gC) * jax.nn.sigmoid(S)
  return gR[:, None] * jnp.exp(S - R[:, None]) + gC * jnp.exp(S - C)


def _total(running, reduction):
  largest, total = running
  return total if reduction == "softplus" else largest + jnp.log(total)


class _Tiles:
  """The tiles of one device's n videos against n texts."""

  def __init__(self, n, tiling):
    self._n, self._dtype = n, jnp.dtype(tiling.matmul_dtype)
    count, self._side = _count(n, tiling)
    self.numbers = jnp.arange(count)

  def _start(self, k):
    # The last tile may overlap the one before.
    return jnp.minimum(k * self._side, self._n - self._side)

  def get(self, tree, k):
    """Tile k of arrays [n, ...]."""
    start = self._start(k)
    return jax.tree.map(
      lambda x: jax.lax.dynamic_slice_in_dim(x, start, self._side), tree
    )

  def put(self, tree, tile, k):
    """`tree` with its tile k replaced."""
    start = self._start(k)
    return jax.tree.map(
      lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0),
      tree,
      tile,
    )

  def similarities(self, videos, texts, scale, bias, a, b):
    """S of tile (a, b), float32 [side, side]; -inf where left out."""
    (v, v_ids), (t, t_ids) = self.get(videos, a), self.get(texts, b)
    S = scale * self.product("id,jd->ij", v, t) + bias
    left_out = v_ids[:, None] == t_ids
    if self._n % self._side:
      left_out |= self._overlap(a)[:, None] | self._overlap(b)
    return jnp.where(left_out, -jnp.inf, S)

  def _overlap(self, k):
    """bool [side], True for the rows of tile k that tile k - 1 has as well."""
    return self._start(k) + jnp.arange(self._side) < k * self._side

  def product(self, indices, x, y):
    """An einsum of x and y in the matmul dtype, summed in float32."""
    full = self._dtype == jnp.float32
    return jnp.einsum(
      indices,
      x.astype(self._dtype),
      y.astype(self._dtype),
      precision=jax.lax.Precision.HIGHEST if full else None,
      preferred_element_type=jnp.float32,
    )


def _count(n, tiling):
  """The number of tiles along n pairs, and the side of a tile."""
  side = min(tiling.tile, n)
  return -(-n // side), side
