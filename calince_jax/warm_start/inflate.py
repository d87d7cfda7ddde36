"""An image tower as the start of the factorised video tower `vit`.

A tubelet's kernel is the image's, shared by its frames, so that a product with
it is the mean over them; what the image tower does to pixels is folded into it
(I3D, Carreira and Zisserman, 2017, and ViViT, Arnab et al., 2021). Temporal
blocks add nothing at first: every token is then the image tower's for the mean
of the tubelet's frames, and without a class token the mean of all tokens is the
mean over frames of the image tower's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from calince_jax.errors import UserError
from calince_jax.models import transformer
from calince_jax.warm_start.convert import Arrays


def check(image: Mapping[str, Any], video: Any, where: str) -> None:
  """UserError where `vit` cannot compute what the image tower does.

  Args:
    image: settings of the image tower, see architectures.tower_settings.
    video: VideoViTSettings.
    where: the folder, for messages.
  """
  wanted = {"patch": image["patch"], "pixels": "scaled"}
  given = {"patch": video.tubelet[1], "pixels": video.pixels}
  wanted["size"] = shape_of(image["size"])
  given["size"] = shape_of(video.size)
  for name, value in wanted.items():
    if given[name] != value:
      raise UserError(
        f"{where} starts a vit of {name} {value}, and config.model.video says"
        f" {given[name]}"
      )
  if image["input_norm"] or image["activation"] == "quick_gelu":
    raise UserError(
      f"{where}: a vit has no norm before its blocks and no quick_gelu, which"
      " CLIP has; choose config.model.video.name='frame_vit'"
    )


def shape_of(size: str) -> tuple[int, int, int, int]:
  """Width, depth, heads and hidden units."""
  found = transformer.size(size)
  hidden = found.hidden or 4 * found.width
  return found.width, found.depth, found.num_heads, hidden


def inflate(
  arrays: Arrays,
  image: Mapping[str, Any],
  *,
  tubelet: tuple[int, int],
  num_tubelets: int,
  temporal_depth: int,
) -> tuple[Arrays, dict[str, tuple[str, str]]]:
  """The arrays of a `vit`, and the marks of those that are not as they were.

  Args:
    arrays: of a frame_vit, see convert.py.
    image: its settings.
    tubelet: frames and pixels.
    num_tubelets: T', in time.
    temporal_depth: blocks along time.
  """
  arrays, marks = dict(arrays), {}
  # A pixel x of [0, 255] was (x / 255 - mean) / std, and is v = x / 127.5 - 1.
  kernel = arrays.pop("patch_embedding/kernel")
  width, pixels = kernel.shape[1], len(kernel) // 3
  mean = np.tile(np.float32(image["pixel_mean"]), pixels)
  std = np.tile(np.float32(image["pixel_std"]), pixels)
  per_frame = kernel / (2 * std)[:, None] / tubelet[0]
  arrays["patch_embedding/kernel"] = np.tile(per_frame, (tubelet[0], 1))
  offset = (((0.5 - mean) / std)[:, None] * kernel).sum(axis=0)
  arrays["patch_embedding/bias"] = arrays["patch_embedding/bias"] + offset
  how = f"shared by {tubelet[0]} frames, with the normalisation of pixels"
  marks["patch_embedding/kernel"] = ("inflated", how)
  marks["patch_embedding/bias"] = ("inflated", "with the normalisation")
  position = arrays.pop("position")
  if image["class_token"]:
    position = position[1:]  # the token itself finds no parameter
  arrays["space_position"] = position
  zero = ("new", "zero: no effect at first")
  arrays["time_position"] = np.zeros((num_tubelets, 1, width), np.float32)
  marks["time_position"] = zero
  # A norm of what is normalised already changes nothing but by its own factors.
  for name in ("scale", "bias"):
    arrays[f"temporal/norm/{name}"] = arrays.pop(f"spatial/norm/{name}")
    arrays[f"spatial/norm/{name}"] = np.full(width, name == "scale", np.float32)
    marks[f"spatial/norm/{name}"] = ("new", "no factors of its own")
  _fold_layer_scale(arrays)
  heads = transformer.size(image["size"]).num_heads
  for i in range(temporal_depth):
    for name, rows in (("attention", (heads, width // heads)), ("mlp", None)):
      path = f"temporal/block_{i}/{name}/out"
      hidden = shape_of(image["size"])[3]
      shape = (*(rows or (hidden,)), width)
      arrays[f"{path}/kernel"] = np.zeros(shape, np.float32)
      arrays[f"{path}/bias"] = np.zeros(width, np.float32)
      marks[f"{path}/kernel"] = marks[f"{path}/bias"] = zero
  return arrays, marks


def _fold_layer_scale(arrays):
  """DINOv2's factor of what a block adds becomes part of its last product."""
  for path in [path for path in arrays if path.endswith("_scale")]:
    factor = arrays.pop(path)
    out = path.removesuffix("_scale") + "/out"
    for leaf in ("kernel", "bias"):
      arrays[f"{out}/{leaf}"] = arrays[f"{out}/{leaf}"] * factor
