"""The correspondence head and the predictive head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from calince_jax.models import transformer
from calince_jax.models.activation_sharding import spread
from calince_jax.models.transformer import dense


def _logit():
  """Begins undecided: all logits 0."""
  return nn.Dense(1, kernel_init=nn.initializers.zeros, name="logit")


HEADS = ("mlp", "bilinear", "cosine", "fusion")


class CorrespondenceHead(nn.Module):
  """g(v, t): the logit that a text belongs to a video.

  Attributes:
    kind: `mlp` on [v, t, v * t, |v - t|]; `bilinear` v' W t; `cosine` a v't +
      b; `fusion`, text tokens that attend to the video's tokens.
    hidden: width of the MLP or of the fusion.
    num_heads: of the fusion's attention.
    dtype: what the products of `fusion` are computed in; the other kinds are
      small and float32.
  """

  kind: str = "mlp"
  hidden: int = 128
  num_heads: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, video: dict[str, jax.Array], text: dict[str, jax.Array]
  ) -> jax.Array:
    """float32 [B], from dicts with `embedding` [B, D], `tokens` and `mask`."""
    v, t = video["embedding"], text["embedding"]
    if self.kind == "mlp":
      x = spread(jnp.concatenate([v, t, v * t, jnp.abs(v - t)], axis=-1))
      # Entries of a unit vector are of size 1 / sqrt(D).
      x = x * jnp.sqrt(jnp.float32(v.shape[-1]))
      x = nn.gelu(dense(self.hidden, name="hidden_0")(x))
      x = nn.gelu(dense(self.hidden, name="hidden_1")(x))
      return _logit()(x)[:, 0]
    if self.kind == "bilinear":
      projected = dense(t.shape[-1], use_bias=False, name="bilinear")(v)
      bias = self.param("bias", nn.initializers.zeros, ())
      return jnp.sqrt(jnp.float32(v.shape[-1])) * (projected * t).sum(-1) + bias
    if self.kind == "cosine":
      scale = self.param("scale", nn.initializers.constant(10.0), ())
      bias = self.param("bias", nn.initializers.zeros, ())
      return scale * (v * t).sum(-1) + bias
    if self.kind == "fusion":
      return self._fusion(video, text)
    raise ValueError(
      f"head {self.kind!r} is unknown; choose one of {list(HEADS)}"
    )

  def _fusion(self, video, text):
    x = dense(self.hidden, dtype=self.dtype, name="text")(text["tokens"])
    x = transformer.Transformer(
      depth=1,
      num_heads=self.num_heads,
      dtype=self.dtype,
      scan=False,
      cross_attention=True,
      name="fusion",
    )(x, mask=text["mask"][:, None, None, :], memory=video["tokens"])
    x = transformer.Pooling("mean", self.num_heads, name="pooling")(
      x, text["mask"]
    )
    return _logit()(x)[:, 0]


class PredictiveDecoder(nn.Module):
  """Text tokens that look at a video and say which tokens they are.

  Attributes:
    causal: each token sees only those before it (`caption`).
  """

  depth: int
  num_heads: int
  causal: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, video_tokens: jax.Array
  ) -> jax.Array:
    """[B, L, W], bool [B, L], [B, M, W'] -> float32 [B, L, W]."""
    attend = mask[:, None, None, :]
    if self.causal:
      attend = attend & nn.make_causal_mask(mask, dtype=bool)
    return transformer.Transformer(
      depth=self.depth,
      num_heads=self.num_heads,
      dtype=self.dtype,
      scan=False,
      cross_attention=True,
      name="decoder",
    )(x, mask=attend, memory=video_tokens)
