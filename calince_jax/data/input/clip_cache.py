"""Clips by number: read each time, or read once and kept in memory.

A source is a function (data set, record) -> (the record, its F frames, faults);
the frames are JPEG files, an object array [F], or pictures, uint8 [F, S, S, 3];
faults is {frame: why} of the pictures that could not be decoded. It raises
DamagedRecord.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from calince_jax.data.input.corrupt_records import DamagedRecord
from calince_jax.data.input.sampling import Sampling, sample_crop
from calince_jax.data.records.clip_dataset import ClipReader

CALLS = len(os.sched_getaffinity(0))  # side by side: one for each core
Clip = tuple[dict[str, Any], np.ndarray, dict[int, str]]
Source = Callable[[int, int], Clip]


def from_disk(readers: Sequence[ClipReader]) -> Source:
  """Reads a clip when it is asked for; the frames are JPEG files."""

  def load(d, index):
    record = readers[d].read([index])[0]
    return record, np.array(record.pop("frames"), object), {}

  return load


def from_memory(readers: Sequence[ClipReader], sampling: Sampling) -> Source:
  """Reads every clip now; a damaged one is an error when it is asked for.

  Where training cuts all samples of a clip alike (`keeps_pictures`), its
  frames are decoded now as well, F S^2 3 bytes a clip; else they stay JPEG
  files.
  """
  read = from_disk(readers)

  def read_all(d):
    clips: dict[int, Clip] = {}
    for index in range(len(readers[d])):
      try:
        clips[index] = read(d, index)
      except DamagedRecord as fault:
        faults[d, index] = fault
    if not keeps_pictures(sampling):
      return clips
    made = _decoded(list(clips.values()), sampling)
    return dict(zip(clips, made, strict=True))

  faults: dict[tuple[int, int], DamagedRecord] = {}
  kept = [read_all(d) for d in range(len(readers))]

  def load(d, index):
    if (d, index) in faults:
      # Without the places where it was raised before, or they add up.
      raise faults[d, index].with_traceback(None)
    return kept[d][index]

  return load


def keeps_pictures(sampling: Sampling) -> bool:
  """Whether `from_memory` gives pictures, not JPEG files."""
  return sampling.min_crop_area == 1


def _decoded(clips: list[Clip], sampling: Sampling) -> list[Clip]:
  """The clips with pictures in place of JPEG files."""
  size = sampling.image_size

  def box(index):
    record, _, _ = clips[index]
    return sample_crop(sampling, record["width"], record["height"], None)

  def make(index):
    jpegs = tf.numpy_function(lambda i: clips[i][1], [index], tf.string)
    square = tf.numpy_function(box, [index], tf.int32)
    return decode(tf.ensure_shape(jpegs, [None]), square, size)

  made: list[Clip] = []
  while len(made) < len(clips):
    dataset = tf.data.Dataset.range(len(made), len(clips))
    dataset = dataset.map(make, num_parallel_calls=CALLS)
    try:
      for pictures in iterate(dataset):
        made.append((clips[len(made)][0], pictures, {}))
    except tf.errors.OpError:
      # Elements come in order: it is the next clip's.
      index = len(made)
      record, jpegs, _ = clips[index]
      pictures, faults = _one_by_one(jpegs, box(index), size)
      if not faults:
        raise
      made.append((record, pictures, faults))
  return made


def _one_by_one(jpegs, box, size):
  """Pictures [F, S, S, 3], zeros where a frame does not decode, and why."""
  pictures = np.zeros((len(jpegs), size, size, 3), np.uint8)
  faults = {}
  for t in range(len(jpegs)):
    fault = decoding_fault(jpegs[t : t + 1], box, size)
    if fault:
      faults[t] = fault
    else:
      (pictures[t],) = decode(tf.constant(jpegs[t : t + 1]), box, size).numpy()
  return pictures, faults


def decoding_fault(jpegs: np.ndarray, box: np.ndarray, size: int) -> str:
  """Why `decode` does not decode these JPEG files; empty where it does."""
  try:
    decode(tf.constant(list(jpegs)), box, size)
  except (tf.errors.OpError, ValueError) as error:
    # "{{function_node ...}} Invalid JPEG data [Op:DecodeAndCropJpeg] name:"
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error))
    return " ".join(text.split())[:200] or type(error).__name__
  return ""


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
