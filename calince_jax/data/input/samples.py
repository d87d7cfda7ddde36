"""One position of a training run to one sample.

    p --> (data set, record)           sampling.addresses
      --> the record and its frames    clip_cache; of another record where it
                                       is corrupt
      --> T frames, caption, crop      sampling, Philox

Which record takes the place of a corrupt one depends on the position and the
data alone, so the batches of a run do not depend on what was read before, by
which thread or host.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from calince_jax.data.input import clip_cache, sampling
from calince_jax.data.input import frames as frames_lib
from calince_jax.data.input.corrupt_records import CorruptRecordLog
from calince_jax.data.input.sampling import Mix, Sampling
from calince_jax.data.problems import CorruptRecord
from calince_jax.data.records.reader import ClipReader
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError


class Draw(NamedTuple):
  """What is taken of a clip for one sample.

  Attributes:
    frames: int64 [T], indices of the clip's frames.
    box: int32 [y, x, height, width], the crop.
    flip: whether it is mirrored.
    colours: float32 [4, 3], see sampling.sample_colours.
    text: a caption.
    pair_index, matched: of the caption.
    label: the number of the clip's class, -1 for none.
  """

  frames: np.ndarray
  box: np.ndarray
  flip: bool
  colours: np.ndarray
  text: str
  pair_index: int
  matched: int
  label: int


class TrainSamples:
  """The samples of a run by position; safe to call from threads.

  Attributes:
    types: of the columns that `columns` returns.
  """

  def __init__(
    self,
    readers: Sequence[ClipReader],
    weights: Sequence[float],
    pair_offsets: Sequence[int],
    tokenizer: Tokenizer,
    settings: Sampling,
    *,
    text_length: int,
    seed: int,
    cache: bool,
    corrupt_records: CorruptRecordLog | None,
    classes: Sequence[str] = (),
  ):
    """See batches.train_batches; with `cache`, reads everything now."""
    self._readers = readers
    self._pair_offsets = pair_offsets
    self._settings = settings
    self._text_length = text_length
    self._seed = seed
    self._corrupt_records = corrupt_records
    self._number = {name: number for number, name in enumerate(classes)}
    self._mix = Mix(weights)
    sizes = [len(reader) for reader in readers]
    self._address = sampling.addresses(self._mix, sizes, seed)
    self._load = (
      clip_cache.from_memory(readers, settings)
      if cache
      else clip_cache.from_disk(readers)
    )
    self._decoded = cache and clip_cache.decodes_once(settings)
    self._substituted: set[int] = set()  # positions that are not counted yet

    def encode(text):
      ids, mask = tokenizer.encode([text], text_length)
      return ids[0], mask[0]

    def encode_all(texts):
      return tokenizer.encode(texts, text_length)

    def remembered(texts):
      return zip(*map(once, texts), strict=True)

    once = functools.cache(encode)
    self._encode = remembered if cache else encode_all
    # frames, box, flip, colours, ids, mask, pair, matched, label
    self.types = [tf.uint8 if self._decoded else tf.string, tf.int32, tf.bool]
    self.types += [tf.float32]
    self.types += [tf.int32, tf.bool, tf.int32, tf.int8, tf.int32]

  def columns(self, p: np.ndarray) -> list[np.ndarray]:
    """Returns the samples at positions p [n], one array [n, ...] a field.

    Raises:
      UserError: a record is corrupt and nothing can take its place.
    """
    d, index = self._address(p)
    rows = list(map(self._sample, p.tolist(), d, index))
    frames, draws = zip(*rows, strict=True)
    _, boxes, flips, colours, texts, *numbers = zip(*draws, strict=True)
    columns = (
      frames,
      boxes,
      flips,
      colours,
      *self._encode(texts),
      *numbers,
    )
    return [
      np.array(column, dtype.as_numpy_dtype)
      for column, dtype in zip(columns, self.types, strict=True)
    ]

  def finish(
    self, frames, box, flip, colours, ids, mask, pair, matched, label
  ) -> dict[str, tf.Tensor]:
    """Decodes one sample of `columns` and names its fields."""
    T, S = self._settings.num_frames, self._settings.image_size
    if not self._decoded:
      frames = frames_lib.decode(
        tf.ensure_shape(frames, [T]), box, S, self._settings.resize
      )
    video = tf.ensure_shape(frames, [T, S, S, 3])
    if self._settings.colour_jitter:
      video = frames_lib.recoloured(video, colours)
    if self._settings.flip != "never":
      video = tf.cond(flip, lambda: tf.reverse(video, [2]), lambda: video)
    sample = {
      "video": video,
      "text_ids": tf.ensure_shape(ids, [self._text_length]),
      "text_mask": tf.ensure_shape(mask, [self._text_length]),
      "pair_index": tf.ensure_shape(pair, []),
      "matched": tf.ensure_shape(matched, []),
    }
    if self._number:
      sample["label"] = tf.ensure_shape(label, [])
    return sample

  def count(self, p: np.ndarray) -> None:
    """Counts the samples at positions p [n] in the log of corrupt records.

    Raises:
      UserError: too many of them were substituted.
    """
    if self._corrupt_records is not None:
      substituted = np.array([one in self._substituted for one in p.tolist()])
      self._substituted.difference_update(p.tolist())
      self._corrupt_records.count(
        self._mix.dataset[p % len(self._mix.dataset)], substituted
      )

  def check(self, p: np.ndarray) -> None:
    """Raises the error for the first of the positions p [n] that has one.

    Raises:
      CorruptRecord: a record is corrupt, and there is no log of them.
      UserError: nothing can take its place, or a frame does not decode.
    """
    for one, d, index in zip(p.tolist(), *self._address(p), strict=True):
      index, record, frames, draw = self._read(one, d, index)
      if not self._decoded:
        name = clip_cache.clip_name(self._readers[d], index, record)
        jpegs = dict(zip(draw.frames.tolist(), frames, strict=True))
        size, resize = self._settings.image_size, self._settings.resize
        frames_lib.check(name, jpegs, list(jpegs), draw.box, size, resize)

  def _sample(self, p, d, index) -> tuple[np.ndarray, Draw]:
    """Returns the frames of one sample, [T, ...], and its other fields."""
    *_, taken, draw = self._read(p, d, index)
    return taken, draw

  def _read(self, p, d, index) -> tuple[int, dict[str, Any], np.ndarray, Draw]:
    """Reads record `index`, or a substitute, as far as the sample needs it.

    Returns:
      The record's number, the record, the frames that were drawn, the draw.
    """
    others = sampling.substitutes(self._seed, p, len(self._readers[d]))
    for one in itertools.chain([index], others):
      try:
        record, frames = self._load(d, one)
        draw = self._draw(p, d, record, len(frames))
        return one, record, frames[draw.frames], draw
      except CorruptRecord as error:
        if self._corrupt_records is None:
          raise
        self._corrupt_records.add(error)
        self._substituted.add(p)
    reader = self._readers[d]
    raise UserError(
      f"{sampling.SUBSTITUTES} records of split {reader.split!r} in"
      f" {reader.directory}, taken at random, are all corrupt; copy the folder"
      " again, or run prepare again"
    )

  def _draw(self, p, d, record, num_frames) -> Draw:
    settings = self._settings
    rng = sampling.generator(self._seed, p)
    chosen = rng.integers(len(record["texts"]))
    frames = sampling.sample_frames(settings, num_frames, rng)
    box = sampling.sample_crop(settings, record["width"], record["height"], rng)
    flip = sampling.sample_flip(settings, record["texts"][chosen], rng)
    colours = sampling.sample_colours(settings, rng)
    return Draw(
      frames,
      box,
      flip,
      colours,
      record["texts"][chosen],
      record["pair_indices"][chosen] + self._pair_offsets[d],
      record["matched"][chosen],
      self._number.get(record["label"], -1),
    )
