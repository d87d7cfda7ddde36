"""The transformer that every tower and head is made of.

Blocks (attention, optional cross-attention, MLP), stacked by `nn.scan` or one
by one, with rematerialisation by name. `Form` says how a block is made: as this
project's own, or as that of a published architecture. Parameters are float32;
`dtype` is what the products are computed in; softmax and layer norms are
float32.
"""

import dataclasses
import functools
import re
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
  """The width, depth and number of heads of a tower, and of its MLPs' units."""

  width: int
  depth: int
  num_heads: int
  hidden: int | None = None  # None: four widths


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


# A size that has no name: WIDTHxDEPTHxHEADSxHIDDEN.
_OWN_SIZE = re.compile(
  r"([1-9]\d{0,5})x([1-9]\d{0,2})x([1-9]\d{0,3})x([1-9]\d{0,5})"
)
SIZE_WANTED = (
  f"one of {list(SIZES)}, or WIDTHxDEPTHxHEADSxHIDDEN, such as 384x12x6x1536,"
  " with heads that divide the width"
)


def is_size(name: Any) -> bool:
  """Whether `size` knows it."""
  if not isinstance(name, str):
    return False
  own = _OWN_SIZE.fullmatch(name)
  return name in SIZES or (own is not None and int(own[1]) % int(own[3]) == 0)


def size(name: str) -> Size:
  """The Size called `name`, or written as 384x12x6x1536.

  Raises:
    ValueError: neither; it lists the known ones.
  """
  if not is_size(name):
    raise ValueError(f"size {name!r} is unknown; it must be {SIZE_WANTED}")
  if name in SIZES:
    return SIZES[name]
  return Size(*map(int, _OWN_SIZE.fullmatch(name).groups()))


def _quick_gelu(x):
  """x sigmoid(1.702 x), of the first CLIP (Hendrycks and Gimpel, 2016)."""
  return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(nn.gelu, approximate=True),
  "quick_gelu": _quick_gelu,
}


@dataclasses.dataclass(frozen=True)
class Form:
  """How blocks are made; as it stands here, this project's own.

  Attributes:
    hidden: units of the MLP; None: four widths.
    activation: a name in ACTIVATIONS.
    epsilon: of the layer norms.
    post_norm: layer norms after each sum, as in BERT; such a stack has none at
      its end.
    layer_scale: a learned factor for each channel of what a block adds
      (Touvron et al., 2021), as in DINOv2.
  """

  hidden: int | None = None
  activation: str = "gelu_tanh"
  epsilon: float = 1e-6
  post_norm: bool = False
  layer_scale: bool = False


class MLP(nn.Module):
  """Dense, GELU, Dense: [..., W] -> [..., W]."""

  hidden: int
  dtype: Any = jnp.float32
  activation: str = Form.activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    x = dense(self.hidden, split=1, dtype=self.dtype, name="in")(x)
    x = ACTIVATIONS[self.activation](spread(x, split=x.ndim - 1))
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


def norm(name: str, form: Form) -> nn.LayerNorm:
  """A layer norm, float32."""
  return nn.LayerNorm(epsilon=form.epsilon, dtype=jnp.float32, name=name)


class Block(nn.Module):
  """One block of some `Form`; returns (x, None), as `nn.scan` wants it."""

  num_heads: int
  form: Form = Form()
  dropout: float = 0.0
  dtype: Any = jnp.float32
  cross_attention: bool = False

  @nn.compact
  def __call__(self, x, mask, memory, deterministic):
    form, width = self.form, x.shape[-1]

    def added(x, name, function):
      """x and what `function` makes of it, normalised before or after."""
      normalised = norm(f"{name}_norm", form)
      y = x if form.post_norm else normalised(x)
      y = function(y.astype(self.dtype))
      if form.layer_scale:
        y = y * self.param(f"{name}_scale", nn.initializers.ones, (width,))
      y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
      x = spread(x + y)
      return spread(normalised(x)) if form.post_norm else x

    attention = _attention(self.num_heads, self.dtype, "attention")
    x = added(spread(x), "attention", lambda y: attention(y, y, mask=mask))
    if self.cross_attention:
      cross = _attention(self.num_heads, self.dtype, "cross_attention")
      memory = memory.astype(self.dtype)
      x = added(x, "cross_attention", lambda y: cross(y, memory))
    hidden = form.hidden or 4 * width
    mlp = MLP(hidden, self.dtype, form.activation, name="mlp")
    return added(x, "mlp", mlp), None


class Transformer(nn.Module):
  """A stack of blocks and, where they are pre-normalised, a final layer norm.

  Attributes:
    form: of the blocks.
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
  form: Form = Form()

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
      "form": self.form,
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
    return x if self.form.post_norm else spread(norm("norm", self.form)(x))


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
  """[B, L, W] -> [B, W].

  Attributes:
    kind: `map`, attention with a learned query (Zhai et al., 2022); `mean`;
      `cls`, the first token; `last`, the last real one.
    form: of the MLP and norm of `map`.
  """

  kind: str
  num_heads: int
  dtype: Any = jnp.float32
  form: Form = Form()

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`mask`: bool [B, L], True where a token is real; None for all."""
    B, L, W = x.shape
    if self.kind == "cls":
      return spread(x[:, 0])
    if self.kind in ("mean", "last"):
      real = jnp.ones((B, L), bool) if mask is None else mask
      if self.kind == "last":
        real &= jnp.arange(L) == real.sum(axis=1, keepdims=True) - 1
      real = real[..., None].astype(x.dtype)
      return (x * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1.0)
    if self.kind != "map":
      raise ValueError(
        f"pooling {self.kind!r} is unknown; choose one of"
        f" {[*POOLINGS, 'cls', 'last']}"
      )
    query = self.param("query", nn.initializers.xavier_uniform(), (1, 1, W))
    query = spread(jnp.tile(query, (B, 1, 1)).astype(self.dtype))  # [B, 1, W]
    attend = None if mask is None else mask[:, None, None, :]
    pooled = _attention(self.num_heads, self.dtype, "attention")(
      query, x.astype(self.dtype), mask=attend
    )
    y = norm("norm", self.form)(pooled).astype(self.dtype)
    hidden = self.form.hidden or 4 * W
    mlp = MLP(hidden, self.dtype, self.form.activation, name="mlp")
    pooled = pooled + mlp(y)
    return spread(pooled[:, 0].astype(jnp.float32))  # [B, W]
