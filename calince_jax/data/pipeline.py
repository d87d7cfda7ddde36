"""tf.data pipelines: address, read, sample, decode, augment, batch.

    position p --> (data set, record)      Mix, index_shuffle within the epoch
               --> JPEG bytes of T frames, caption, crop      ClipReader, Philox
               --> uint8 [T, S, S, 3]      decode_and_crop_jpeg, in C++ threads
               --> batch, in order

TensorFlow is kept to the CPU.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from calince_jax.data import clip_source
from calince_jax.data import sampling as sampling_lib
from calince_jax.data.clip_dataset import ClipReader
from calince_jax.data.sampling import Mix, Sampling
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError

# The accelerators belong to JAX.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")


SAMPLES_A_CALL = 32  # of Python, which runs one at a time


def train_batches(
  readers: Sequence[ClipReader],
  weights: Sequence[float],
  pair_offsets: Sequence[int],
  tokenizer: Tokenizer,
  sampling: Sampling,
  *,
  batch_size: int,
  rows: np.ndarray,
  text_length: int,
  seed: int,
  first_step: int,
  cache: bool = False,
  prefetch: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
  """This host's rows of each global batch, for ever, from `first_step` on.

  Args:
    readers: the data sets of the mix.
    weights: how often each is read, relative to the others.
    pair_offsets: added to each data set's pair indices, to tell them apart.
    tokenizer: of the captions.
    sampling: see Sampling.
    batch_size: B, of the global batch.
    rows: int [b], which rows of the global batch this host holds.
    text_length: L.
    seed: with the position, the source of all randomness.
    first_step: the step that the first batch is for.
    cache: read everything once, before the first batch, and keep it in memory
      (clip_source.py says what); the samples are the same.
    prefetch: batches that are made ahead.

  Yields:
    {video uint8 [b, T, S, S, 3], text_ids int32 [b, L], text_mask bool
    [b, L], pair_index int32 [b], matched int8 [b]: 1 the text is known to
    belong to the video, 0 known not to, -1 unknown}.

  Raises:
    UserError: a record cannot be read or decoded.
  """
  T, S = sampling.num_frames, sampling.image_size
  rows = np.asarray(rows, np.int64)
  address = _addresses(readers, weights, seed)
  with _named_fault():
    load = (
      clip_source.from_memory(readers, sampling)
      if cache
      else clip_source.from_disk(readers)
    )
  decoded = cache and clip_source.keeps_pictures(sampling)

  def encode(text):
    ids, mask = tokenizer.encode([text], text_length)
    return ids[0], mask[0]

  encode = functools.cache(encode) if cache else encode

  def sample(p, d, index):
    rng = sampling_lib.generator(seed, p)
    record, pictures = load(d, index)
    chosen = rng.integers(len(record["texts"]))
    ids, mask = encode(record["texts"][chosen])
    frames = sampling_lib.sample_frames(sampling, len(pictures), rng)
    box = sampling_lib.sample_crop(
      sampling, record["width"], record["height"], rng
    )
    flip = sampling.flip and rng.random() < 0.5
    pair = record["pair_indices"][chosen] + pair_offsets[d]
    matched = record["matched"][chosen]
    return pictures[frames], box, flip, ids, mask, pair, matched

  def samples(k):
    # k counts this host's samples; p all hosts'.
    p = k // len(rows) * batch_size + rows[k % len(rows)]
    columns = zip(*map(sample, p.tolist(), *address(p)), strict=True)
    return [
      np.array(column, dtype.as_numpy_dtype)
      for column, dtype in zip(columns, types, strict=True)
    ]

  types = [tf.uint8 if decoded else tf.string, tf.int32, tf.bool]
  types += [tf.int32, tf.bool, tf.int32, tf.int8]

  def finish(pictures, box, flip, ids, mask, pair, matched):
    if not decoded:
      pictures = clip_source.decode(tf.ensure_shape(pictures, [T]), box, S)
    video = tf.ensure_shape(pictures, [T, S, S, 3])
    if sampling.flip:
      video = tf.cond(flip, lambda: tf.reverse(video, [2]), lambda: video)
    return {
      "video": video,
      "text_ids": tf.ensure_shape(ids, [text_length]),
      "text_mask": tf.ensure_shape(mask, [text_length]),
      "pair_index": tf.ensure_shape(pair, []),
      "matched": tf.ensure_shape(matched, []),
    }

  first = first_step * len(rows)
  dataset = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
  dataset = dataset.batch(SAMPLES_A_CALL).map(
    lambda k: tf.numpy_function(samples, [k], types),
    num_parallel_calls=clip_source.CALLS,
  )
  dataset = dataset.unbatch().map(finish, num_parallel_calls=clip_source.CALLS)
  dataset = dataset.batch(len(rows), drop_remainder=True).prefetch(prefetch)
  return _numpy(dataset)


def _addresses(
  readers: Sequence[ClipReader], weights: Sequence[float], seed: int
) -> Callable[[np.ndarray], tuple[list[int], list[int]]]:
  """The function from positions [n] to data sets [n] and records [n]."""
  mix = Mix(weights)
  sizes = np.array([len(reader) for reader in readers])

  def address(p):
    d, turn = np.array([mix(one) for one in p.tolist()]).T
    epoch, index = np.divmod(turn, sizes[d])
    order = epoch * len(readers) + d
    for one in np.unique(order):
      # Each epoch of each data set is in an order of its own.
      index[order == one] = tf.random.experimental.index_shuffle(
        index[order == one],
        np.array([seed, one], np.int32),
        sizes[one % len(readers)] - 1,
      )
    return d.tolist(), index.tolist()

  return address


def eval_batches(
  reader: ClipReader,
  sampling: Sampling,
  *,
  batch_size: int,
  num_clips: int = 1,
  num_crops: int = 1,
  rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Each clip of a split, in order, in num_clips x num_crops test views.

  Args:
    reader: of the split.
    sampling: see Sampling.
    batch_size: B, of the global batch.
    num_clips: views along time.
    num_crops: views across the frame.
    rows: int [b], which rows of the global batch this host holds; None: all.

  Yields:
    {video uint8 [b, T, S, S, 3], record int64 [b]}; the last batch is filled
    up with repetitions whose `record` is -1.
  """
  rows = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
  views = num_clips * num_crops
  total = len(reader) * views

  def sample(p):
    index, view = divmod(int(p), views)
    record = reader.read([index])[0]
    clip, crop = divmod(view, num_crops)
    frames = sampling_lib.view_frames(
      sampling, len(record["frames"]), clip, num_clips
    )
    box = sampling_lib.view_crop(
      record["width"], record["height"], crop, num_crops
    )
    return np.array([record["frames"][i] for i in frames], object), box

  def make(k):
    p = k // len(rows) * batch_size + tf.gather(rows, k % len(rows))
    jpegs, box = tf.numpy_function(
      sample, [tf.minimum(p, total - 1)], [tf.string, tf.int32]
    )
    jpegs = tf.ensure_shape(jpegs, [sampling.num_frames])
    video = clip_source.decode(jpegs, box, sampling.image_size)
    record = tf.where(p < total, p // views, np.int64(-1))
    return {"video": video, "record": record}

  batches = -(-total // batch_size)
  dataset = tf.data.Dataset.range(batches * len(rows))
  dataset = dataset.map(make, num_parallel_calls=clip_source.CALLS)
  return _numpy(dataset.batch(len(rows)).prefetch(2))


def _numpy(dataset):
  with _named_fault():
    yield from clip_source.iterate(dataset)


@contextlib.contextmanager
def _named_fault():
  """What went wrong in a worker becomes a UserError."""
  try:
    yield
  except tf.errors.OpError as error:
    raise UserError(
      f"a sample cannot be read or decoded: {str(error.message)[:600]}; prepare"
      " the data anew"
    ) from error
