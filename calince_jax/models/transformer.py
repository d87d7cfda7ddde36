"""The transformer that every tower and head is made of.

Pre-normalised blocks (attention, optional cross-attention, MLP), stacked by
`nn.scan` or one by one, with rematerialisation by name. Parameters are
float32; `dtype` is what the products are computed in; softmax and layer norms
are float32.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from calince_jax.models import activation_sharding
from calince_jax.models.activation_sharding import spread

# What the backward pass keeps: everything; the outputs of the products; or
# the blocks' inputs alone.
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Size:
  """The width, depth and number of heads of a tower."""

  width: int
  depth: int
  num_heads: int


# Ti, S, B, L, H as in ViT and DeiT, g as in Zhai et al. (2022) but for its MLP,
# which is 4 widths here; mu and nano are for tests and for CPUs.
SIZES = {
  "mu": Size(width=32, depth=1, num_heads=2),
  "nano": Size(width=96, depth=2, num_heads=3),
  "Ti": Size(width=192, depth=12, num_heads=3),
  "S": Size(width=384, depth=12, num_heads=6),
  "B": Size(width=768, depth=12, num_heads=12),
  "L": Size(width=1024, depth=24, num_heads=16),
  "H": Size(width=1280, depth=32, num_heads=16),
  "g": Size(width=1408, depth=40, num_heads=16),
}


def size(name: str) -> Size:
  """The Size called `name`; ValueError lists the known ones."""
  if name not in SIZES:
    raise ValueError(f"size {name!r} is unknown; choose one of {list(SIZES)}")
  return SIZES[name]


class MLP(nn.Module):
  """Dense, GELU, Dense: [..., W] -> [..., W]."""

  hidden: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    x = dense(self.hidden, split=1, dtype=self.dtype, name="in")(x)
    x = nn.gelu(spread(x, split=x.ndim - 1))
    return dense(width, split=0, dtype=self.dtype, name="out")(x)


def dense(
  features: int, *, split: int | None = None, **settings: Any
) -> nn.Dense:
  """`nn.Dense` of activations [B, ...] whose kernel is gathered.

  Args:
    features: of the output.
    split: the axis of the kernel that is split, see activation_sharding.
    **settings: of `nn.Dense`.
  """
  return nn.Dense(
    features, dot_general=activation_sharding.product(split), **settings
  )


def _attention(num_heads, dtype, name):
  return nn.MultiHeadDotProductAttention(
    num_heads=num_heads,
    dtype=dtype,
    kernel_init=nn.initializers.xavier_uniform(),
    attention_fn=_attend,
    qkv_dot_general=activation_sharding.product(split=1),  # [W, heads, part]
    out_dot_general=activation_sharding.product(split=0),  # [heads, part, W]
    name=name,
  )


def _attend(query, key, value, *, mask=None, dtype=None):
  """Scaled dot-product attention, [B, L, heads, W / heads] each.

  As Flax's, but that the float32 softmax is rounded to `dtype` at once: these
  weights are the largest arrays of a tower, and products of float32 are slow.
  """
  query, key, value = (spread(x, split=2) for x in (query, key, value))
  query = query / jnp.sqrt(query.shape[-1]).astype(dtype)
  scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(dtype).min)
  weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(dtype)
  return spread(jnp.einsum("bhqk,bkhd->bqhd", weights, value), split=2)


def _norm(name):
  return nn.LayerNorm(dtype=jnp.float32, name=name)


class Block(nn.Module):
  """One pre-normalised block; returns (x, None), as `nn.scan` wants it."""

  num_heads: int
  mlp_ratio: int = 4
  dropout: float = 0.0
  dtype: Any = jnp.float32
  cross_attention: bool = False

  @nn.compact
  def __call__(self, x, mask, memory, deterministic):
    def residual(y):
      return nn.Dropout(self.dropout)(y, deterministic=deterministic)

    x = spread(x)
    y = _norm("attention_norm")(x).astype(self.dtype)
    y = _attention(self.num_heads, self.dtype, "attention")(y, y, mask=mask)
    x = spread(x + residual(y))
    if self.cross_attention:
      y = _norm("cross_attention_norm")(x).astype(self.dtype)
      cross = _attention(self.num_heads, self.dtype, "cross_attention")
      x = spread(x + residual(cross(y, memory.astype(self.dtype))))
    y = _norm("mlp_norm")(x).astype(self.dtype)
    y = MLP(self.mlp_ratio * x.shape[-1], self.dtype, name="mlp")(y)
    return spread(x + residual(y)), None


class Transformer(nn.Module):
  """A stack of blocks and a final layer norm.

  Attributes:
    scan: one compiled block and stacked parameters [depth, ...]; compiles in
      time that does not grow with the depth.
    remat: one of REMAT.
  """

  depth: int
  num_heads: int
  dropout: float = 0.0
  dtype: Any = jnp.float32
  scan: bool = True
  remat: str = "none"
  cross_attention: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    mask: jax.Array | None = None,
    memory: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """float [B, L, W] -> float32 [B, L, W].

    Args:
      x: tokens.
      mask: bool, broadcastable to [B, heads, L, L], True where a query may
        look; None for everywhere.
      memory: [B, M, W'], what cross-attention looks at.
      deterministic: no dropout.
    """
    block = _rematerialised(self.remat, in_scan=self.scan)
    settings = {
      "num_heads": self.num_heads,
      "dropout": self.dropout,
      "dtype": self.dtype,
      "cross_attention": self.cross_attention,
    }
    if self.scan:
      blocks = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * 3,
        length=self.depth,
      )(**settings, name="blocks")
      x, _ = blocks(x, mask, memory, deterministic)
    else:
      for i in range(self.depth):
        x, _ = block(**settings, name=f"block_{i}")(
          x, mask, memory, deterministic
        )
    return spread(_norm("norm")(x))


def _rematerialised(name, in_scan):
  """Block, keeping for the backward pass what `name` says."""
  if name == "none":
    return Block
  if name not in REMAT:
    raise ValueError(f"remat={name!r} is unknown; choose one of {list(REMAT)}")
  policy = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  }[name]
  # Counting self as 0, `deterministic` is argument 4. A scan already keeps
  # the compiler from merging the recomputation with the forward pass.
  return nn.remat(
    Block, policy=policy, static_argnums=(4,), prevent_cse=not in_scan
  )


POOLINGS = ("map", "mean")


class Pooling(nn.Module):
  """[B, L, W] -> [B, W]: attention with a learned query (MAP), or the mean."""

  kind: str
  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`mask`: bool [B, L], True where a token is real; None for all."""
    B, L, W = x.shape
    if self.kind == "mean":
      real = jnp.ones((B, L), bool) if mask is None else mask
      real = real[..., None].astype(x.dtype)
      return (x * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1.0)
    if self.kind != "map":
      raise ValueError(
        f"pooling {self.kind!r} is unknown; choose one of {list(POOLINGS)}"
      )
    query = self.param("query", nn.initializers.xavier_uniform(), (1, 1, W))
    query = spread(jnp.tile(query, (B, 1, 1)).astype(self.dtype))  # [B, 1, W]
    attend = None if mask is None else mask[:, None, None, :]
    pooled = _attention(self.num_heads, self.dtype, "attention")(
      query, x.astype(self.dtype), mask=attend
    )
    y = _norm("norm")(pooled).astype(self.dtype)
    pooled = pooled + MLP(4 * W, self.dtype, name="mlp")(y)
    return spread(pooled[:, 0].astype(jnp.float32))  # [B, W]
