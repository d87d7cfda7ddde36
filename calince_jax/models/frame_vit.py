"""An image ViT on each frame, and time on top of it.

The towers that images are learned with (ViT, Dosovitskiy et al., 2021; CLIP,
Radford et al., 2021; SigLIP, Zhai et al., 2023; DINOv2, Oquab et al., 2024)
differ in their settings alone. Each frame gets a feature; a clip's is their
mean, or with temporal blocks the mean of f_t + W T(f + p)_t, where T attends
along time and W begins at 0: the mean and the sequence transformer of CLIP4Clip
(Luo et al., 2022), with its residual connection.
"""

import dataclasses
import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from calince_jax import fields
from calince_jax.fields import Check, OneOf, Range
from calince_jax.models import transformer
from calince_jax.models.activation_sharding import spread


def _are_channels(low):
  def fits(value):
    return (
      fields.is_list(value)
      and len(value) == 3
      and all(
        type(x) in (int, float) and math.isfinite(x) and low < x <= 1
        for x in value
      )
    )

  return fits


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameViTSettings:
  """`config.model.video` where its name is `frame_vit`; see `FrameViT`."""

  name: Annotated[str, OneOf(("frame_vit",))]
  size: Annotated[str, Check(transformer.is_size, transformer.SIZE_WANTED)]
  patch: Annotated[int, Range("[1, 4096]")]
  temporal_depth: Annotated[int, Range("[0, 1000]")]
  pooling: Annotated[str, OneOf(("cls", "mean", "map"))]
  class_token: bool
  input_norm: bool
  layer_scale: bool
  activation: Annotated[str, OneOf(tuple(transformer.ACTIVATIONS))]
  epsilon: Annotated[float, Range("(0, 0.1]")]
  pixel_mean: Annotated[
    tuple, Check(_are_channels(-1), "three numbers, of [0, 1]")
  ]
  pixel_std: Annotated[
    tuple, Check(_are_channels(0), "three numbers above 0, at most 1")
  ]

  def __post_init__(self):
    fields.check_instance(self)
    if self.pooling == "cls" and not self.class_token:
      raise ValueError("pooling='cls' needs class_token=True")

  def check_clip(self, num_frames: int, image_size: int) -> None:
    """ValueError unless a frame of this size is cut into whole patches."""
    del num_frames  # any will do
    if image_size % self.patch:
      raise ValueError(
        f"image_size={image_size} cannot be cut into patches of"
        f" {self.patch} x {self.patch} pixels"
      )

  def build(self, shared: dict[str, Any]) -> "FrameViT":
    """The module, with the settings that all towers share."""
    settings = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in ("name", "activation", "epsilon", "layer_scale")
    }
    form = transformer.Form(
      hidden=transformer.size(self.size).hidden,
      activation=self.activation,
      epsilon=self.epsilon,
      layer_scale=self.layer_scale,
    )
    return FrameViT(**settings, form=form, **shared)


class FrameViT(nn.Module):
  """Video to tokens and one feature.

  Attributes:
    size: of `transformer.size`.
    patch: pixels of a patch, each way.
    temporal_depth: blocks along time, on the features of the frames; 0: their
      mean.
    pooling: of a frame's tokens: `cls`, `mean` of the patches, or `map`.
    class_token: whether a learned token goes before the patches.
    input_norm: whether tokens are normalised before the first block, as CLIP's.
    pixel_mean, pixel_std: of each channel, in units of 255; what is taken off
      and divided by.
    form: of the blocks.
  """

  size: str
  patch: int
  temporal_depth: int
  pooling: str
  class_token: bool
  input_norm: bool
  pixel_mean: tuple[float, float, float]
  pixel_std: tuple[float, float, float]
  form: transformer.Form = transformer.Form()
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
      video: uint8 [B, T, H, W, 3]; H and W multiples of the patch.
      deterministic: no dropout.

    Returns:
      The feature, float32 [B, width], and the tokens, float32 [B, T * (N + c),
      width] of N patches and c class tokens a frame, time first.

    Raises:
      ValueError: a frame cannot be cut into whole patches.
    """
    size = transformer.size(self.size)
    B, T = video.shape[:2]
    x = transformer.dense(size.width, dtype=self.dtype, name="patch_embedding")(
      self._patches(spread(video))
    )
    small = nn.initializers.normal(0.02)
    if self.class_token:
      token = self.param("class_token", small, (1, size.width))
      token = jnp.broadcast_to(token.astype(x.dtype), (B * T, 1, size.width))
      x = jnp.concatenate([spread(token), x], axis=1)
    M = x.shape[1]
    x = spread(x + self.param("position", small, (M, size.width)))
    if self.input_norm:
      x = spread(transformer.norm("input_norm", self.form)(x))
    x = self._stack(size.depth, self.form, "spatial")(
      x, deterministic=deterministic
    )
    pooled = transformer.Pooling(
      self.pooling, size.num_heads, self.dtype, self.form, name="pooling"
    )(x[:, 1:] if self.class_token and self.pooling != "cls" else x)
    frames = spread(pooled.reshape(B, T, size.width))
    feature = self._over_time(frames, deterministic)
    return feature, spread(x.reshape(B, T * M, size.width))

  def _over_time(self, frames, deterministic):
    """[B, T, W] -> [B, W]; at first the mean, whatever the temporal blocks."""
    if self.temporal_depth:
      T, width = frames.shape[1:]
      position = self.param(
        "time_position", nn.initializers.normal(0.02), (T, width)
      )
      x = self._stack(self.temporal_depth, transformer.Form(), "temporal")(
        spread(frames + position), deterministic=deterministic
      )
      x = transformer.dense(
        width, kernel_init=nn.initializers.zeros, name="temporal_out"
      )(x)
      frames = spread(frames + x)
    return spread(frames.mean(axis=1))

  def _stack(self, depth, form, name):
    return transformer.Transformer(
      depth=depth,
      num_heads=transformer.size(self.size).num_heads,
      dropout=self.dropout,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
      form=form,
      name=name,
    )

  def _patches(self, video):
    """uint8 [B, T, H, W, 3] -> [BT, HW/pp, p*p*3], normalised."""
    B, T, H, W, C = video.shape
    p = self.patch
    if H % p or W % p:
      raise ValueError(
        f"frames of {H} x {W} pixels cannot be cut into patches of {p} x {p}"
      )
    x = video.reshape(B * T, H // p, p, W // p, p, C)
    x = x.swapaxes(2, 3)  # [BT, H', W', p, p, 3]
    x = spread(x.reshape(B * T, (H // p) * (W // p), p * p * C))
    x = jax.lax.optimization_barrier(x)  # cut as bytes, see video_vit.py
    mean = jnp.tile(jnp.asarray(self.pixel_mean, jnp.float32), p * p)
    std = jnp.tile(jnp.asarray(self.pixel_std, jnp.float32), p * p)
    return ((x.astype(jnp.float32) / 255.0 - mean) / std).astype(self.dtype)
