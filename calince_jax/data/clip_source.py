"""Clips by number: read each time, or read once and kept in memory.

A source is a function (data set, record) -> (the record, its F frames); the
frames are JPEG files, an object array [F], or pictures, uint8 [F, S, S, 3].
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from calince_jax.data.clip_dataset import ClipReader
from calince_jax.data.sampling import Sampling, sample_crop

CALLS = len(os.sched_getaffinity(0))  # side by side: one for each core
Source = Callable[[int, int], tuple[dict[str, Any], np.ndarray]]


def from_disk(readers: Sequence[ClipReader]) -> Source:
  """Reads a clip when it is asked for; the frames are JPEG files."""

  def load(d, index):
    record = readers[d].read([index])[0]
    return record, np.array(record.pop("frames"), object)

  return load


def from_memory(readers: Sequence[ClipReader], sampling: Sampling) -> Source:
  """Reads every clip now.

  Where training cuts all samples of a clip alike (`keeps_pictures`), its
  frames are decoded now as well, F S^2 3 bytes a clip; else they stay JPEG
  files.

  Raises:
    UserError: a record is damaged.
    tf.errors.OpError: a frame cannot be decoded.
  """
  load = from_disk(readers)
  kept = [
    [load(d, index) for index in range(len(reader))]
    for d, reader in enumerate(readers)
  ]
  if keeps_pictures(sampling):
    kept = [_decoded(clips, sampling) for clips in kept]
  return lambda d, index: kept[d][index]


def keeps_pictures(sampling: Sampling) -> bool:
  """Whether `from_memory` gives pictures, not JPEG files."""
  return sampling.min_crop_area == 1


def _decoded(clips, sampling):
  def box(index):
    record, _ = clips[index]
    return sample_crop(sampling, record["width"], record["height"], None)

  def make(index):
    jpegs = tf.numpy_function(lambda i: clips[i][1], [index], tf.string)
    square = tf.numpy_function(box, [index], tf.int32)
    return decode(tf.ensure_shape(jpegs, [None]), square, sampling.image_size)

  dataset = tf.data.Dataset.range(len(clips))
  dataset = dataset.map(make, num_parallel_calls=CALLS)
  pictures = iterate(dataset)
  return [
    (clip, frames) for (clip, _), frames in zip(clips, pictures, strict=True)
  ]


def iterate(dataset: tf.data.Dataset) -> Iterator[Any]:
  """The elements as NumPy arrays, in order.

  Without tf.data's tuning thread: it sleeps for up to a minute at a time, and
  a process that ends waits for it.
  """
  options = tf.data.Options()
  options.deterministic = True
  options.autotune.enabled = False
  return dataset.with_options(options).as_numpy_iterator()


def decode(jpegs: tf.Tensor, box: tf.Tensor, size: int) -> tf.Tensor:
  """JPEG files [F] and one box [y, x, height, width] -> uint8 [F, S, S, 3]."""
  box = tf.ensure_shape(box, [4])

  def one(jpeg):
    return tf.io.decode_and_crop_jpeg(jpeg, box, channels=3)

  if jpegs.shape[0] is None:
    frames = tf.map_fn(one, jpegs, fn_output_signature=tf.uint8)
  else:  # faster
    frames = tf.stack([one(jpegs[t]) for t in range(jpegs.shape[0])])

  def fitted():
    video = tf.image.resize(frames, [size, size], antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(video, 0.0, 255.0)), tf.uint8)

  fits = tf.reduce_all(box[2:] == size)
  video = tf.cond(fits, lambda: frames, fitted)
  return tf.ensure_shape(video, [jpegs.shape[0], size, size, 3])
