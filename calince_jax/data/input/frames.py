"""JPEG files to pictures, and the error for one that does not decode.

TensorFlow runs on the CPU alone.
"""

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from calince_jax.errors import UserError

# The accelerators belong to JAX.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

RATIOS = (1, 2, 4, 8)  # by which a JPEG decoder can reduce


def decode(
  jpegs: tf.Tensor, box: tf.Tensor, size: int, resize: str
) -> tf.Tensor:
  """Decodes a part of each frame, and resizes it where it has another size.

  `antialiased` is a triangle filter as wide as the reduction. `bilinear` costs
  a sixth of it: where the picture is 1.6 times as large as wanted, the decoder
  halves it (1/4 and 1/8 from 3.2 and 6.4 on), and a plain bilinear step does
  the rest. docs/results.md says by how much the pictures differ.

  Args:
    jpegs: string [F], F known when traced.
    box: int32 [y, x, height, width], one for all frames.
    size: S, in pixels.
    resize: one of sampling.RESIZES.

  Returns:
    uint8 [F, S, S, 3].

  Raises:
    tf.errors.OpError: a frame is no JPEG file, or does not hold the box.
  """
  box = tf.ensure_shape(box, [4])
  F, out = jpegs.shape[0], [size, size]

  def cropped(t, ratio=1):
    scaled = box if ratio == 1 else _reduced(box, ratio)
    return tf.io.decode_and_crop_jpeg(jpegs[t], scaled, channels=3, ratio=ratio)

  def as_they_are():
    return tf.stack([cropped(t) for t in range(F)])

  def antialiased():
    frames = tf.stack([cropped(t) for t in range(F)])
    frames = tf.image.resize(frames, out, antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(frames, 0.0, 255.0)), tf.uint8)

  def bilinear(ratio):
    def one(t):  # frame by frame: what was decoded is still in the cache
      frame = tf.image.resize(cropped(t, ratio), out)
      return tf.cast(frame + 0.5, tf.uint8)

    return tf.stack([one(t) for t in range(F)])

  if resize == "antialiased":
    branches, which = [antialiased], 0
  else:
    branches = [functools.partial(bilinear, ratio) for ratio in RATIOS]
    scale = tf.reduce_min(box[2:]) / size
    which = sum(tf.cast(scale >= 0.8 * r, tf.int32) for r in RATIOS[1:])
  which = tf.where(tf.reduce_all(box[2:] == size), len(branches), which)
  video = tf.switch_case(which, [*branches, as_they_are])
  return tf.ensure_shape(video, [F, size, size, 3])


def _reduced(box: tf.Tensor, ratio: int) -> tf.Tensor:
  """The box in a picture of 1 / ratio the size, inside of it."""
  begin, end = box[:2] // ratio, (box[:2] + box[2:]) // ratio
  return tf.concat([begin, tf.maximum(end - begin, 1)], 0)


def recoloured(video: tf.Tensor, colours: tf.Tensor) -> tf.Tensor:
  """Returns uint8 [F, S, S, 3]: each pixel [r g b 1] times `colours` [4, 3]."""
  colours = tf.ensure_shape(colours, [4, 3])
  changed = tf.tensordot(tf.cast(video, tf.float32), colours[:3], 1)
  changed = tf.clip_by_value(changed + colours[3], 0.0, 255.0)
  return tf.cast(changed + 0.5, tf.uint8)


def check(
  clip: str,
  jpegs: Sequence[bytes] | Mapping[int, bytes],
  frames: Sequence[int],
  box: np.ndarray,
  size: int,
  resize: str,
) -> None:
  """Raises the error for the first frame that `decode` cannot decode.

  The record that it stands in is as it was written, so no copy of the data set
  can help.

  Args:
    clip: names it in the message.
    jpegs: of the record, by index.
    frames: the indices of those to check.
    box, size, resize: see `decode`.

  Raises:
    UserError: a frame does not decode.
  """
  for t in frames:
    try:
      decode(tf.constant([jpegs[t]]), box, size, resize)
    except (tf.errors.OpError, ValueError) as error:
      # "{{function_node ...}} Invalid JPEG data [Op:DecodeAndCropJpeg] name:"
      text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error))
      why = " ".join(text.split())[:200] or type(error).__name__
      raise UserError(
        f"frame {t} of {clip} does not decode ({why}), and its record is as it"
        " was written: the prepared data is wrong; run prepare again"
      ) from None
