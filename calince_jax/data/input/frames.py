"""JPEG files to pictures, and the error for one that does not decode.

TensorFlow runs on the CPU alone.
"""

import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from calince_jax.errors import UserError

# The accelerators belong to JAX.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")


def decode(jpegs: tf.Tensor, box: tf.Tensor, size: int) -> tf.Tensor:
  """Decodes a part of each frame, and resizes it where it has another size.

  Args:
    jpegs: string [F], F known when traced.
    box: int32 [y, x, height, width], one for all frames.
    size: S, in pixels.

  Returns:
    uint8 [F, S, S, 3].

  Raises:
    tf.errors.OpError: a frame is no JPEG file, or does not hold the box.
  """
  box = tf.ensure_shape(box, [4])
  frames = tf.stack(
    [
      tf.io.decode_and_crop_jpeg(jpegs[t], box, channels=3)
      for t in range(jpegs.shape[0])
    ]
  )

  def resized():
    video = tf.image.resize(frames, [size, size], antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(video, 0.0, 255.0)), tf.uint8)

  fits = tf.reduce_all(box[2:] == size)
  video = tf.cond(fits, lambda: frames, resized)
  return tf.ensure_shape(video, [jpegs.shape[0], size, size, 3])


def check(
  clip: str,
  jpegs: Sequence[bytes],
  frames: Sequence[int],
  box: np.ndarray,
  size: int,
) -> None:
  """Raises the error for the first frame that `decode` cannot decode.

  The record that it stands in is as it was written, so no copy of the data set
  can help.

  Args:
    clip: names it in the message.
    jpegs: of the record, all of them.
    frames: the indices of those to check.
    box, size: see `decode`.

  Raises:
    UserError: a frame does not decode.
  """
  for t in frames:
    try:
      decode(tf.constant([jpegs[t]]), box, size)
    except (tf.errors.OpError, ValueError) as error:
      # "{{function_node ...}} Invalid JPEG data [Op:DecodeAndCropJpeg] name:"
      text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error))
      why = " ".join(text.split())[:200] or type(error).__name__
      raise UserError(
        f"frame {t} of {clip} does not decode ({why}), and its record is as it"
        " was written: the prepared data is wrong; run prepare again"
      ) from None
