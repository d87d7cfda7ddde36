"""What stands at a position of a training run, also where data is damaged.

    p --> (data set, record)      Mix, index_shuffle within the epoch
      --> T frames, caption, crop      a source of clips, Philox
      --> where these cannot be had: the same of another record

A sample is damaged if its record cannot be read, or one of its T frames not
decoded. That is a matter of the position and the files alone, so the batches
of a run do not depend on what was found before, by which thread or host.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from calince_jax.data.input import clip_cache, sampling
from calince_jax.data.input.corrupt_records import DamagedRecord, DamageLog
from calince_jax.data.input.sampling import Mix, Sampling
from calince_jax.data.records.clip_dataset import ClipReader
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError


class TrainSamples:
  """The samples of a run by position; safe to call from threads."""

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
    damage: DamageLog | None,
  ):
    """See pipeline.train_batches; with `cache`, reads everything now."""
    self._readers = readers
    self._pair_offsets = pair_offsets
    self._settings = settings
    self._text_length = text_length
    self._seed = seed
    self._damage = damage
    self._mix = Mix(weights)
    sizes = [len(reader) for reader in readers]
    self._address = addresses(self._mix, sizes, seed)
    self._load = (
      clip_cache.from_memory(readers, settings)
      if cache
      else clip_cache.from_disk(readers)
    )
    self._decoded = cache and clip_cache.keeps_pictures(settings)
    # Records of which a sample did not decode: all of theirs are tried first.
    self._suspects: set[tuple[int, int]] = set()
    self._substituted: set[int] = set()  # positions that are not counted yet

    def encode(text):
      ids, mask = tokenizer.encode([text], text_length)
      return ids[0], mask[0]

    self._encode = functools.cache(encode) if cache else encode
    # pictures, box, flip, ids, mask, pair, matched
    self.types = [tf.uint8 if self._decoded else tf.string, tf.int32, tf.bool]
    self.types += [tf.int32, tf.bool, tf.int32, tf.int8]

  def columns(self, p: np.ndarray) -> list[np.ndarray]:
    """The samples at the positions p [n], one array [n, ...] a field."""
    rows = map(self._sample, p.tolist(), *self._address(p))
    return [
      np.array(column, dtype.as_numpy_dtype)
      for column, dtype in zip(zip(*rows, strict=True), self.types, strict=True)
    ]

  def finish(
    self, pictures, box, flip, ids, mask, pair, matched
  ) -> dict[str, tf.Tensor]:
    """Decodes one sample of `columns` and names its fields."""
    T, S = self._settings.num_frames, self._settings.image_size
    if not self._decoded:
      pictures = clip_cache.decode(tf.ensure_shape(pictures, [T]), box, S)
    video = tf.ensure_shape(pictures, [T, S, S, 3])
    if self._settings.flip:
      video = tf.cond(flip, lambda: tf.reverse(video, [2]), lambda: video)
    return {
      "video": video,
      "text_ids": tf.ensure_shape(ids, [self._text_length]),
      "text_mask": tf.ensure_shape(mask, [self._text_length]),
      "pair_index": tf.ensure_shape(pair, []),
      "matched": tf.ensure_shape(matched, []),
    }

  def count(self, p: np.ndarray) -> None:
    """Tells `damage` of the positions p [n], which were made and are used."""
    if self._damage is not None:
      substituted = np.array([one in self._substituted for one in p.tolist()])
      self._substituted.difference_update(p.tolist())
      self._damage.count(
        self._mix.dataset[p % len(self._mix.dataset)], substituted
      )

  def look_for_damage(self, p: np.ndarray) -> bool:
    """Decodes the samples at p [n] here, one by one.

    Returns:
      Whether there is one that cannot be decoded and was not known of: now
      `columns` gives its substitute.

    Raises:
      DamagedRecord: there is one, and no `damage` that would list it.
      UserError: no readable substitute is found.
    """
    known = len(self._suspects)
    for one, d, index in zip(p.tolist(), *self._address(p), strict=True):
      self._sample(one, d, index, try_all=True)
    return len(self._suspects) > known

  def _sample(self, p, d, index, try_all=False):
    others = sampling.substitutes(self._seed, p, len(self._readers[d]))
    for one in itertools.chain([index], others):
      try:
        return self._made(p, d, one, try_all)
      except DamagedRecord as fault:
        if self._damage is None:
          raise
        self._damage.found(fault)
        self._substituted.add(p)
    reader = self._readers[d]
    raise UserError(
      f"{sampling.SUBSTITUTES} clips of split {reader.split!r} in"
      f" {reader.directory}, taken at random, are all damaged; copy the folder"
      " again or prepare the data anew"
    )

  def _made(self, p, d, index, try_all):
    settings = self._settings
    rng = sampling.generator(self._seed, p)
    record, pictures, faults = self._load(d, index)
    chosen = rng.integers(len(record["texts"]))
    ids, mask = self._encode(record["texts"][chosen])
    frames = sampling.sample_frames(settings, len(pictures), rng)
    box = sampling.sample_crop(settings, record["width"], record["height"], rng)
    flip = settings.flip and rng.random() < 0.5
    pair = record["pair_indices"][chosen] + self._pair_offsets[d]
    matched = record["matched"][chosen]
    pictures = pictures[frames]
    if faults or try_all or (d, index) in self._suspects:
      self._check(d, index, frames, pictures, box, faults)
    return pictures, box, flip, ids, mask, pair, matched

  def _check(self, d, index, frames, pictures, box, faults):
    """Raises DamagedRecord where one of these frames does not decode."""
    if self._decoded:
      fault = next((faults[t] for t in frames if t in faults), "")
    else:
      size = self._settings.image_size
      fault = clip_cache.decoding_fault(pictures, box, size)
    if fault:
      self._suspects.add((d, index))
      reader = self._readers[d]
      raise DamagedRecord(
        reader.directory, reader.split, index, fault, "does not decode"
      )


def addresses(
  mix: Mix, sizes: Sequence[int], seed: int
) -> Callable[[np.ndarray], tuple[list[int], list[int]]]:
  """The function from positions [n] to data sets [n] and records [n]."""
  sizes = np.array(sizes)

  def address(p):
    d, turn = np.array([mix(one) for one in p.tolist()]).T
    epoch, index = np.divmod(turn, sizes[d])
    order = epoch * len(sizes) + d
    for one in np.unique(order):
      # Each epoch of each data set is in an order of its own.
      index[order == one] = tf.random.experimental.index_shuffle(
        index[order == one],
        np.array([seed, one], np.int32),
        sizes[one % len(sizes)] - 1,
      )
    return d.tolist(), index.tolist()

  return address
