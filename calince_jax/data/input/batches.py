"""tf.data pipelines: address, read, sample, decode, augment, batch.

    position p --> JPEG bytes of T frames, caption, crop      TrainSamples
               --> uint8 [T, S, S, 3]      decode_and_crop_jpeg, in C++ threads
               --> batch, in order

TensorFlow is kept to the CPU.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from calince_jax.data.input import clip_cache
from calince_jax.data.input import sampling as sampling_lib
from calince_jax.data.input.corrupt_records import DamagedRecord, DamageLog
from calince_jax.data.input.samples import TrainSamples
from calince_jax.data.input.sampling import Sampling
from calince_jax.data.records.clip_dataset import ClipReader
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
  damage: DamageLog | None = None,
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
      (clip_cache.py says what); the samples are the same.
    damage: lists damaged records and counts the samples that take another
      record for theirs; None: the first one is an error.
    prefetch: batches that are made ahead.

  Yields:
    {video uint8 [b, T, S, S, 3], text_ids int32 [b, L], text_mask bool
    [b, L], pair_index int32 [b], matched int8 [b]: 1 the text is known to
    belong to the video, 0 known not to, -1 unknown}.

  Raises:
    UserError: a record cannot be read or decoded and there is no `damage`, or
      it finds too many.
  """
  rows = np.asarray(rows, np.int64)
  try:
    samples = TrainSamples(
      readers,
      weights,
      pair_offsets,
      tokenizer,
      sampling,
      text_length=text_length,
      seed=seed,
      cache=cache,
      damage=damage,
    )
  except tf.errors.OpError as error:
    raise _named(error) from error

  def position(k):  # k counts this host's samples, p all hosts'
    return k // len(rows) * batch_size + rows[k % len(rows)]

  def columns(k):
    return samples.columns(position(k))

  def dataset(step):
    made = tf.data.Dataset.range(step * len(rows), np.iinfo(np.int64).max)
    made = made.batch(SAMPLES_A_CALL).map(
      lambda k: tf.numpy_function(columns, [k], samples.types),
      num_parallel_calls=clip_cache.CALLS,
    )
    made = made.unbatch()
    made = made.map(samples.finish, num_parallel_calls=clip_cache.CALLS)
    return made.batch(len(rows), drop_remainder=True).prefetch(prefetch)

  def look_for_damage(step):
    # What fails in Python takes all samples of its call along.
    k = step * len(rows) + np.arange(len(rows) + SAMPLES_A_CALL)
    return samples.look_for_damage(position(k))

  def count(step):
    samples.count(position(step * len(rows) + np.arange(len(rows))))

  return _mended(dataset, look_for_damage, count, first_step)


def _mended(
  dataset: Callable[[int], tf.data.Dataset],
  look_for_damage: Callable[[int], bool],
  count: Callable[[int], None],
  step: int,
) -> Iterator[dict[str, np.ndarray]]:
  """The batches from `step` on; begun anew at one that cannot be made.

  Each time, one record more is known that does not decode, so this ends.
  """
  made = clip_cache.iterate(dataset(step))
  while True:
    try:
      batch = next(made)
    except tf.errors.OpError as error:
      if not look_for_damage(step):
        raise _named(error) from error
      made = clip_cache.iterate(dataset(step))
      continue
    count(step)
    yield batch
    step += 1


def eval_batches(
  reader: ClipReader,
  sampling: Sampling,
  *,
  batch_size: int,
  num_clips: int = 1,
  num_crops: int = 1,
  rows: np.ndarray | None = None,
) -> Iterable[dict[str, np.ndarray]]:
  """Each clip of a split, in order, in num_clips x num_crops test views.

  To be gone through as often as wanted: TensorFlow keeps a little of every
  pipeline that was ever made, so one is to be made once.

  Args:
    reader: of the split.
    sampling: see Sampling.
    batch_size: B, of the global batch.
    num_clips: views along time.
    num_crops: views across the frame.
    rows: int [b], which rows of the global batch this host holds; None: all.

  Returns:
    The batches {video uint8 [b, T, S, S, 3], record int64 [b]}; the last is
    filled up with repetitions whose `record` is -1.

  Raises:
    DamagedRecord: one cannot be read or decoded: nothing takes its place.
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
    video = clip_cache.decode(jpegs, box, sampling.image_size)
    record = tf.where(p < total, p // views, np.int64(-1))
    return {"video": video, "record": record}

  batches = -(-total // batch_size)
  dataset = tf.data.Dataset.range(batches * len(rows))
  dataset = dataset.map(make, num_parallel_calls=clip_cache.CALLS)
  dataset = dataset.batch(len(rows)).prefetch(2)

  def check(step):
    """Raises DamagedRecord if a sample of this batch is."""
    for p in np.minimum(step * batch_size + rows, total - 1):
      jpegs, box = sample(p)
      fault = clip_cache.decoding_fault(jpegs, box, sampling.image_size)
      if fault:
        raise DamagedRecord(
          reader.directory, reader.split, int(p) // views, fault
        )

  return _Batches(dataset, check)


class _Batches:
  """The batches of a data set; each time that they are gone through."""

  def __init__(self, dataset: tf.data.Dataset, check: Callable[[int], None]):
    self._dataset, self._check = dataset, check

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return _checked(clip_cache.iterate(self._dataset), self._check)


def _checked(batches, check):
  """The batches; where one cannot be made, what `check` finds is raised."""
  step = 0
  try:
    for batch in batches:
      yield batch
      step += 1
  except tf.errors.OpError as error:
    check(step)
    raise _named(error) from error


def _named(error: tf.errors.OpError) -> UserError:
  """What went wrong in a worker, for the person."""
  return UserError(
    f"a sample cannot be read or decoded: {str(error.message)[:600]}; prepare"
    " the data anew"
  )
