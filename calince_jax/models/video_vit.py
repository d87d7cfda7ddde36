"""A factorised space-time vision transformer.

Tubelets are embedded; spatial blocks attend among the tokens of one instant;
temporal blocks attend, at each place, along time. All tokens are kept, so that
a head can look at them. (The factorised encoder of ViViT, Arnab et al., 2021,
with the tokens kept as in VideoPrism, Zhao et al., 2024.)
"""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from calince_jax import fields
from calince_jax.fields import Check, OneOf, Range
from calince_jax.models import transformer
from calince_jax.models.activation_sharding import spread


def _is_tubelet(value):
  return (
    fields.is_list(value)
    and len(value) == 2
    and all(type(part) is int and 1 <= part <= 4096 for part in value)
  )


PIXELS = ("centred", "scaled")
GREY_LEVELS = 64.0  # one unit of a centred pixel


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoViTSettings:
  """`config.model.video` where its name is `vit`; see `VideoViT`."""

  name: Annotated[str, OneOf(("vit",))]
  size: Annotated[str, Check(transformer.is_size, transformer.SIZE_WANTED)]
  temporal_depth: Annotated[int, Range("[0, 1000]")]
  tubelet: Annotated[
    tuple[int, int],
    Check(_is_tubelet, "two whole numbers, frames and pixels, at least 1"),
  ]
  pooling: Annotated[str, OneOf(transformer.POOLINGS)]
  pixels: Annotated[str, OneOf(PIXELS)]

  def __post_init__(self):
    fields.check_instance(self)

  def check_clip(self, num_frames: int, image_size: int) -> None:
    """ValueError unless a clip of this shape is cut into whole tubelets."""
    t, p = self.tubelet
    if num_frames % t or image_size % p:
      raise ValueError(
        f"num_frames={num_frames} and image_size={image_size} cannot"
        f" be cut into tubelets of {t} frames of {p} x {p} pixels"
      )

  def build(self, shared: dict[str, Any]) -> "VideoViT":
    """The module, with the settings that all towers share."""
    return VideoViT(
      size=self.size,
      temporal_depth=self.temporal_depth,
      tubelet=tuple(self.tubelet),
      pooling=self.pooling,
      pixels=self.pixels,
      **shared,
    )


class VideoViT(nn.Module):
  """Video to tokens and one feature.

  Attributes:
    size: of `transformer.size`; its depth is the spatial depth.
    temporal_depth: the number of temporal blocks.
    tubelet: frames and pixels of a tubelet, (t, p).
    pooling: `map` or `mean`.
    pixels: `centred` about the mean of the clip's own pixels, so that what is
      the same in all clips (a dark ground) does not outweigh what differs; or
      `scaled`, from [0, 255] to [-1, 1].
  """

  size: str
  temporal_depth: int = 2
  tubelet: tuple[int, int] = (2, 16)
  pooling: str = "map"
  pixels: str = "centred"
  dropout: float = 0.0
  dtype: Any = jnp.float32
  scan: bool = True
  remat: str = "none"

  @nn.compact
  def __call__(
    self, video: jax.Array, *, deterministic: bool = True
  ) -> tuple[jax.Array, jax.Array]:
    """Encodes clips.

    Args:
      video: uint8 [B, T, H, W, 3]; T a multiple of t, H and W of p.
      deterministic: no dropout.

    Returns:
      The feature, float32 [B, width], and the tokens, float32
      [B, T/t * H/p * W/p, width], time first.

    Raises:
      ValueError: the clip cannot be cut into whole tubelets.
    """
    size = transformer.size(self.size)
    form = transformer.Form(hidden=size.hidden)
    x = spread(self._tubelets(spread(video)))  # [B, T', N, t*p*p*3]
    B, T, N, _ = x.shape
    x = transformer.dense(size.width, dtype=self.dtype, name="patch_embedding")(
      x
    )
    position = nn.initializers.normal(0.02)
    x = x + self.param("space_position", position, (N, size.width))
    x = spread(x + self.param("time_position", position, (T, 1, size.width)))

    def stack(depth, name):
      return transformer.Transformer(
        depth=depth,
        num_heads=size.num_heads,
        dropout=self.dropout,
        dtype=self.dtype,
        scan=self.scan,
        remat=self.remat,
        form=form,
        name=name,
      )

    x = spread(x.reshape(B * T, N, size.width))
    x = stack(size.depth, "spatial")(x, deterministic=deterministic)
    x = x.reshape(B, T, N, size.width).swapaxes(1, 2)  # [B, N, T', W]
    x = spread(x.reshape(B * N, T, size.width))
    x = stack(self.temporal_depth, "temporal")(x, deterministic=deterministic)
    x = x.reshape(B, N, T, size.width).swapaxes(1, 2)  # [B, T', N, W]
    tokens = spread(x.reshape(B, T * N, size.width))
    pooled = transformer.Pooling(
      self.pooling, size.num_heads, self.dtype, form, name="pooling"
    )(tokens)
    return pooled, tokens

  def _tubelets(self, video):
    """uint8 [B, T, H, W, 3] -> [B, T/t, HW/pp, t*p*p*3]."""
    B, T, H, W, C = video.shape
    t, p = self.tubelet
    if T % t or H % p or W % p:
      raise ValueError(
        f"a clip of {T} frames of {H} x {W} pixels cannot be cut into"
        f" tubelets of {t} frames of {p} x {p}"
      )
    x = video.reshape(B, T // t, t, H // p, p, W // p, p * C)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6)  # [B, T', H', W', t, p, p * 3]
    x = x.reshape(B, T // t, (H // p) * (W // p), t * p * p * C)
    # Cut as bytes: TPU's compiler would rather cast first, and then hold the
    # clip in floats with its 3 channels padded to 128.
    x = jax.lax.optimization_barrier(x)
    if self.pixels == "scaled":
      return x.astype(self.dtype) / 127.5 - 1.0
    # Contrast is kept: dividing by the clip's own deviation as well cost 10
    # points of R@10 on a corpus whose colours matter (docs/method.md).
    mean = video.astype(jnp.float32).mean(axis=(1, 2, 3, 4))
    x = x.astype(jnp.float32) - mean[:, None, None, None]
    return (x / GREY_LEVELS).astype(self.dtype)
