"""tf.data pipelines: address, read, sample, decode, augment, batch.

    position p --> (data set, record)      Mix, index_shuffle within the epoch
               --> JPEG bytes of T frames, caption, crop      ClipReader, Philox
               --> uint8 [T, S, S, 3]      decode_and_crop_jpeg, in C++ threads
               --> batch, in order

TensorFlow is kept to the CPU.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from calince_jax.data import sampling as sampling_lib
from calince_jax.data.clip_dataset import ClipReader
from calince_jax.data.sampling import Mix, Sampling
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError

# The accelerators belong to JAX.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")


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
    prefetch: batches that are made ahead.

  Yields:
    {video uint8 [b, T, S, S, 3], text_ids int32 [b, L], text_mask bool
    [b, L], pair_index int32 [b]}.

  Raises:
    UserError: a record cannot be read or decoded.
  """
  mix = Mix(weights)
  rows = np.asarray(rows, np.int64)

  def address(p):
    d, turn = mix(p)
    epoch, index = divmod(turn, len(readers[d]))
    key = np.array([seed, epoch * len(readers) + d], np.int32)
    return d, index, key, len(readers[d]) - 1

  def sample(p, d, index):
    rng = sampling_lib.generator(seed, int(p))
    record = readers[d].read([index])[0]
    chosen = rng.integers(len(record["texts"]))
    ids, mask = tokenizer.encode([record["texts"][chosen]], text_length)
    frames = sampling_lib.sample_frames(sampling, len(record["frames"]), rng)
    box = sampling_lib.sample_crop(
      sampling, record["width"], record["height"], rng
    )
    flip = sampling.flip and rng.random() < 0.5
    pair = record["pair_indices"][chosen] + pair_offsets[d]
    jpegs = np.array([record["frames"][i] for i in frames], object)
    return jpegs, box, np.bool_(flip), ids[0], mask[0], np.int32(pair)

  def make(k):
    # k counts this host's samples; p all hosts'.
    p = k // len(rows) * batch_size + tf.gather(rows, k % len(rows))
    d, index, key, last = tf.numpy_function(
      address, [p], [tf.int64, tf.int64, tf.int32, tf.int64]
    )
    key = tf.ensure_shape(key, [2])
    index = tf.random.experimental.index_shuffle(index, key, last)
    jpegs, box, flip, ids, mask, pair = tf.numpy_function(
      sample,
      [p, d, index],
      [tf.string, tf.int32, tf.bool, tf.int32, tf.bool, tf.int32],
    )
    video = _decode(jpegs, box, sampling)
    return {
      "video": tf.cond(flip, lambda: tf.reverse(video, [2]), lambda: video),
      "text_ids": tf.ensure_shape(ids, [text_length]),
      "text_mask": tf.ensure_shape(mask, [text_length]),
      "pair_index": tf.ensure_shape(pair, []),
    }

  first = first_step * len(rows)
  dataset = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
  dataset = dataset.map(make, num_parallel_calls=tf.data.AUTOTUNE)
  dataset = dataset.batch(len(rows), drop_remainder=True).prefetch(prefetch)
  return _numpy(dataset)


def eval_batches(
  reader: ClipReader,
  sampling: Sampling,
  *,
  batch_size: int,
  num_clips: int = 1,
  num_crops: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Each clip of a split, in order, in num_clips x num_crops test views.

  Yields:
    {video uint8 [batch_size, T, S, S, 3], record int64 [batch_size]}; the
    last batch is filled up with repetitions whose `record` is -1.
  """
  views = num_clips * num_crops

  def sample(k):
    index, view = divmod(int(k), views)
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
    jpegs, box = tf.numpy_function(sample, [k], [tf.string, tf.int32])
    return {"video": _decode(jpegs, box, sampling), "record": k // views}

  dataset = tf.data.Dataset.range(len(reader) * views)
  dataset = dataset.map(make, num_parallel_calls=tf.data.AUTOTUNE)
  for batch in _numpy(dataset.batch(batch_size).prefetch(2)):
    missing = batch_size - len(batch["record"])
    fill = [(0, missing)] + [(0, 0)] * 4
    yield {
      "video": np.pad(batch["video"], fill, mode="edge"),
      "record": np.pad(batch["record"], (0, missing), constant_values=-1),
    }


def _decode(jpegs, box, sampling):
  """T JPEG files and one box -> uint8 [T, S, S, 3]."""
  T, S = sampling.num_frames, sampling.image_size
  jpegs = tf.ensure_shape(jpegs, [T])
  box = tf.ensure_shape(box, [4])
  frames = [
    tf.io.decode_and_crop_jpeg(jpegs[t], box, channels=3) for t in range(T)
  ]
  video = tf.image.resize(tf.stack(frames), [S, S], antialias=True)
  video = tf.cast(tf.round(tf.clip_by_value(video, 0.0, 255.0)), tf.uint8)
  return tf.ensure_shape(video, [T, S, S, 3])


def _numpy(dataset):
  """The batches; what went wrong in a worker becomes a UserError."""
  options = tf.data.Options()
  options.deterministic = True
  try:
    yield from dataset.with_options(options).as_numpy_iterator()
  except tf.errors.OpError as error:
    raise UserError(
      f"a sample cannot be read or decoded: {str(error.message)[:600]}; prepare"
      " the data anew"
    ) from error
