"""I3D: Inception-v1 with kernels inflated along time.

Carreira and Zisserman (2017), to the end of Mixed_5c: what comes after wants
clips of one size. Batch norms are part of the kernels and biases, with the
statistics that the weights came with: this tower is one to start from weights,
see docs/towers.md.
"""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from calince_jax import fields
from calince_jax.fields import OneOf
from calince_jax.models.activation_sharding import gathered, spread

WIDTH = 1024  # of a token
# (name, what): a convolution's outputs, size and stride; a pooling's window and
# stride; a module's outputs, see Mixed.
LAYERS = (
  ("Conv3d_1a_7x7", (64, 7, 2)),
  ("MaxPool3d_2a_3x3", ((1, 3, 3), (1, 2, 2))),
  ("Conv3d_2b_1x1", (64, 1, 1)),
  ("Conv3d_2c_3x3", (192, 3, 1)),
  ("MaxPool3d_3a_3x3", ((1, 3, 3), (1, 2, 2))),
  ("Mixed_3b", (64, 96, 128, 16, 32, 32)),
  ("Mixed_3c", (128, 128, 192, 32, 96, 64)),
  ("MaxPool3d_4a_3x3", ((3, 3, 3), (2, 2, 2))),
  ("Mixed_4b", (192, 96, 208, 16, 48, 64)),
  ("Mixed_4c", (160, 112, 224, 24, 64, 64)),
  ("Mixed_4d", (128, 128, 256, 24, 64, 64)),
  ("Mixed_4e", (112, 144, 288, 32, 64, 64)),
  ("Mixed_4f", (256, 160, 320, 32, 128, 128)),
  ("MaxPool3d_5a_2x2", ((2, 2, 2), (2, 2, 2))),
  ("Mixed_5b", (256, 160, 320, 32, 128, 128)),
  ("Mixed_5c", (384, 192, 384, 48, 128, 128)),
)
# The convolutions of a module: name, and the size of its kernel each way.
BRANCHES = (
  ("Branch_0_Conv3d_0a_1x1", 1),
  ("Branch_1_Conv3d_0a_1x1", 1),
  ("Branch_1_Conv3d_0b_3x3", 3),
  ("Branch_2_Conv3d_0a_1x1", 1),
  ("Branch_2_Conv3d_0b_3x3", 3),
  ("Branch_3_Conv3d_0b_1x1", 1),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class I3DSettings:
  """`config.model.video` where its name is `i3d`."""

  name: Annotated[str, OneOf(("i3d",))]

  def __post_init__(self):
    fields.check_instance(self)

  def check_clip(self, num_frames: int, image_size: int) -> None:
    """Any clip will do: what its edges lack is padded."""
    del num_frames, image_size

  def build(self, shared: dict[str, Any]) -> "I3D":
    """The module, with the settings that all towers share."""
    return I3D(**shared)


class I3D(nn.Module):
  """Video to tokens and one feature; there is no dropout, and no scan."""

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
      video: uint8 [B, T, H, W, 3].
      deterministic: is the same either way.

    Returns:
      The feature, float32 [B, 1024], the mean of the tokens; and the tokens,
      float32 [B, T/8 * H/32 * W/32, 1024], each number rounded up, time first.
    """
    del deterministic
    # Other than the two ends of `remat` there is no product to be kept.
    mixed = Mixed if self.remat == "none" else nn.remat(Mixed)
    x = spread(video).astype(self.dtype) / 127.5 - 1.0
    for name, what in LAYERS:
      if name.startswith("Conv"):
        x = Convolution(*what, self.dtype, name=name)(x)
      elif name.startswith("MaxPool"):
        x = spread(nn.max_pool(x, *what, padding="SAME"))
      else:
        x = mixed(what, self.dtype, name=name)(x)
    tokens = spread(x.astype(jnp.float32).reshape(x.shape[0], -1, WIDTH))
    return spread(tokens.mean(axis=1)), tokens


class Mixed(nn.Module):
  """Four branches side by side: 1x1; 1x1 and 3x3, twice; pooling and 1x1."""

  outputs: tuple[int, ...]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    one, reduce_3, three, reduce_5, five, pooled = (
      Convolution(outputs, size, 1, self.dtype, name=name)
      for (name, size), outputs in zip(BRANCHES, self.outputs, strict=True)
    )
    window, stride = (3, 3, 3), (1, 1, 1)
    branches = [
      one(x),
      three(reduce_3(x)),
      five(reduce_5(x)),
      pooled(nn.max_pool(x, window, stride, padding="SAME")),
    ]
    return spread(jnp.concatenate(branches, axis=-1))


class Convolution(nn.Module):
  """A cube of `size` each way, a bias, and ReLU."""

  outputs: int
  size: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (*(self.size,) * 3, x.shape[-1], self.outputs)
    kernel = self.param("kernel", nn.initializers.he_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, (self.outputs,))
    y = jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      gathered(kernel.astype(self.dtype)),
      (self.stride,) * 3,
      "SAME",
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    return spread(nn.relu(y + bias.astype(self.dtype)))
