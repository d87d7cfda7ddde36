"""Clips by number: read each time, or read once and kept in memory.

A loader is a function (data set, record) -> (the record, its F frames); the
frames are JPEG files, an object array [F] or Frames that read those that are
taken, or decoded, uint8 [F, S, S, 3]. Loading and taking raise CorruptRecord.
"""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from calince_jax.data.input import frames
from calince_jax.data.input.sampling import Sampling, sample_crop
from calince_jax.data.problems import CorruptRecord
from calince_jax.data.records.reader import ClipReader, Frames

THREADS = len(os.sched_getaffinity(0))  # one for each core
LoadedClip = tuple[dict[str, Any], np.ndarray | Frames]
Loader = Callable[[int, int], LoadedClip]


def from_disk(readers: Sequence[ClipReader]) -> Loader:
  """Returns a loader that reads a record whenever it is asked for it."""

  return lambda d, index: readers[d].clip(index)


def from_memory(readers: Sequence[ClipReader], sampling: Sampling) -> Loader:
  """Reads every clip now, and returns a loader of them.

  A corrupt record is an error only when it is asked for. Where training crops
  all samples of a clip alike (`decodes_once`), its frames are decoded now, and
  take F S^2 3 bytes a clip; else they stay JPEG files.

  Raises:
    UserError: a frame does not decode.
  """
  read = from_disk(readers)
  clips: dict[tuple[int, int], LoadedClip] = {}
  corrupt: dict[tuple[int, int], CorruptRecord] = {}

  def read_one(address):
    d, index = address
    try:
      record, jpegs = read(d, index)
      jpegs = jpegs[np.arange(len(jpegs))]
    except CorruptRecord as error:
      corrupt[address] = error
      return
    if decodes_once(sampling):
      clips[address] = record, decoded(readers[d], index, record, jpegs)
    else:
      clips[address] = record, jpegs

  def decoded(reader, index, record, jpegs):
    box = sample_crop(sampling, record["width"], record["height"], None)
    size = sampling.image_size
    try:
      jpegs_tensor = tf.constant(jpegs.tolist())
      return frames.decode(jpegs_tensor, box, size, sampling.resize).numpy()
    except (tf.errors.OpError, ValueError):
      name = clip_name(reader, index, record)
      every = range(len(jpegs))
      frames.check(name, jpegs, every, box, size, sampling.resize)
      raise

  addresses = [(d, i) for d, r in enumerate(readers) for i in range(len(r))]
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    try:
      for _ in pool.map(read_one, addresses):
        pass
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise

  def load(d, index):
    if (d, index) in corrupt:
      # Without the places where it was raised before, or they add up.
      raise corrupt[d, index].with_traceback(None)
    return clips[d, index]

  return load


def decodes_once(sampling: Sampling) -> bool:
  """Returns whether `from_memory` decodes the frames."""
  return sampling.min_crop_area == 1


def clip_name(reader: ClipReader, index: int, record: dict[str, Any]) -> str:
  """Returns a clip's name for a message."""
  return (
    f"record {index} (clip {record['id']!r}) of split {reader.split!r} in"
    f" {reader.directory}"
  )
