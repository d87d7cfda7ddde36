"""The tf.data pipelines of training and evaluation.

    position p --> JPEG files of T frames, caption, crop      TrainSamples
               --> uint8 [T, S, S, 3]      decode_and_crop_jpeg, in C++ threads
               --> batch, in order

A record that fails its checksum or cannot be parsed costs a training sample,
which takes another record. A frame that does not decode inside a record whose
checksum is right is an error.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from calince_jax.data.input import clip_cache
from calince_jax.data.input import frames as frames_lib
from calince_jax.data.input import sampling as sampling_lib
from calince_jax.data.input.corrupt_records import CorruptRecordLog
from calince_jax.data.input.samples import TrainSamples
from calince_jax.data.input.sampling import Sampling
from calince_jax.data.records.reader import ClipReader
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError

SAMPLES_PER_CALL = 32  # of Python, which runs one at a time


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
  corrupt_records: CorruptRecordLog | None = None,
  classes: Sequence[str] = (),
  confidences: np.ndarray | None = None,
  prefetch: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this host's rows of each global batch from `first_step` on.

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
    corrupt_records: lists them, and counts the samples that take another
      record for theirs; None: the first one is an error.
    classes: names of labels; where there are some, batches have their numbers.
    confidences: float32, of each pair index with its offset, see
      given_confidences.py; where there are some, batches have them.
    prefetch: batches that are made ahead.

  Yields:
    {video uint8 [b, T, S, S, 3], text_ids int32 [b, L], text_mask bool
    [b, L], pair_index int32 [b], matched int8 [b]: 1 the text is known to
    belong to the video, 0 known not to, -1 unknown}; with `classes` also label
    int32 [b], -1 for clips of none of them, and with `confidences`
    given_confidence float32 [b].

  Raises:
    UserError: a frame does not decode, or there are too many corrupt records,
      or one and no `corrupt_records`.
  """
  rows = np.asarray(rows, np.int64)
  samples = TrainSamples(
    readers,
    weights,
    pair_offsets,
    tokenizer,
    sampling,
    text_length=text_length,
    seed=seed,
    cache=cache,
    corrupt_records=corrupt_records,
    classes=classes,
  )

  def position(k):  # k counts this host's samples, p all hosts'
    return k // len(rows) * batch_size + rows[k % len(rows)]

  def columns(k):
    return samples.columns(position(k))

  dataset = tf.data.Dataset.range(
    first_step * len(rows), np.iinfo(np.int64).max
  )
  dataset = dataset.batch(SAMPLES_PER_CALL).map(
    lambda k: tf.numpy_function(columns, [k], samples.types),
    num_parallel_calls=clip_cache.THREADS,
  )
  dataset = dataset.unbatch()
  dataset = dataset.map(samples.finish, num_parallel_calls=clip_cache.THREADS)
  dataset = dataset.batch(len(rows), drop_remainder=True).prefetch(prefetch)

  def check(step):
    # What fails in Python takes all samples of its call along.
    k = step * len(rows) + np.arange(len(rows) + SAMPLES_PER_CALL)
    samples.check(position(k))

  def counted():
    for step, batch in _explained(_iterate(dataset), check, first_step):
      samples.count(position(step * len(rows) + np.arange(len(rows))))
      if confidences is not None:
        given = confidences[batch["pair_index"]]
        batch = batch | {"given_confidence": given}
      yield batch

  return counted()


def eval_batches(
  reader: ClipReader,
  sampling: Sampling,
  *,
  batch_size: int,
  num_clips: int = 1,
  num_crops: int = 1,
  rows: np.ndarray | None = None,
  order: np.ndarray | None = None,
) -> Iterable[dict[str, np.ndarray]]:
  """Returns each clip of a split, in order, in num_clips x num_crops views.

  It can be iterated over any number of times. Make it once: TensorFlow never
  frees all memory of a pipeline.

  Args:
    reader: of the split.
    sampling: see Sampling.
    batch_size: B, of the global batch.
    num_clips: views along time.
    num_crops: views across the frame.
    rows: int [b], which rows of the global batch this host holds; None: all.
    order: int [N], the records in the order to read; None: as they are stored.

  Returns:
    The batches {video uint8 [b, T, S, S, 3], record int64 [b]}; the last is
    filled up with repetitions whose `record` is -1.

  Raises:
    CorruptRecord: nothing takes its place.
    UserError: a frame does not decode.
  """
  rows = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
  order = np.arange(len(reader)) if order is None else np.asarray(order)
  views = num_clips * num_crops
  total = len(reader) * views

  def view(p):
    position, number = divmod(int(p), views)
    index = int(order[position])
    record, stored = reader.clip(index)
    clip, crop = divmod(number, num_crops)
    frames = sampling_lib.view_frames(sampling, len(stored), clip, num_clips)
    box = sampling_lib.view_crop(
      record["width"], record["height"], crop, num_crops
    )
    return index, record, frames, stored[frames], box

  def jpegs_and_box(p):
    *_, jpegs, box = view(p)
    return jpegs, box

  def make(k):
    p = k // len(rows) * batch_size + tf.gather(rows, k % len(rows))
    filled = tf.minimum(p, total - 1)
    jpegs, box = tf.numpy_function(
      jpegs_and_box, [filled], [tf.string, tf.int32]
    )
    jpegs = tf.ensure_shape(jpegs, [sampling.num_frames])
    video = frames_lib.decode(jpegs, box, sampling.image_size, sampling.resize)
    number = tf.gather(order, filled // views)
    record = tf.where(p < total, number, np.int64(-1))
    return {"video": video, "record": record}

  batches = -(-total // batch_size)
  dataset = tf.data.Dataset.range(batches * len(rows))
  dataset = dataset.map(make, num_parallel_calls=clip_cache.THREADS)
  dataset = dataset.batch(len(rows)).prefetch(2)

  def check(step):
    for p in np.minimum(step * batch_size + rows, total - 1):
      index, record, frames, jpegs, box = view(p)
      name = clip_cache.clip_name(reader, index, record)
      jpegs = dict(zip(frames.tolist(), jpegs, strict=True))
      size, resize = sampling.image_size, sampling.resize
      frames_lib.check(name, jpegs, list(jpegs), box, size, resize)

  return _Batches(dataset, check)


class _Batches:
  """The batches of a data set, each time that it is iterated over."""

  def __init__(self, dataset: tf.data.Dataset, check: Callable[[int], None]):
    self._dataset, self._check = dataset, check

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    for _, batch in _explained(_iterate(self._dataset), self._check):
      yield batch


def _iterate(dataset: tf.data.Dataset) -> Iterator[Any]:
  """Returns the elements as NumPy arrays, in order.

  Without tf.data's tuning thread: it sleeps for up to a minute at a time, and
  a process that ends waits for it.
  """
  options = tf.data.Options()
  options.deterministic = True
  options.autotune.enabled = False
  return dataset.with_options(options).as_numpy_iterator()


def _explained(
  batches: Iterator[dict[str, np.ndarray]],
  check: Callable[[int], None],
  first_step: int = 0,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """Yields (step, batch); where one cannot be made, raises the reason.

  What a tf.data pipeline raises names neither clip nor frame. So the samples of
  the batch that failed are made once more, by `check(step)`, one by one.
  """
  step = first_step
  try:
    for batch in batches:
      yield step, batch
      step += 1
  except tf.errors.OpError as error:
    check(step)
    raise UserError(
      f"a batch cannot be made: {str(error.message)[:600]}; please report this"
    ) from error
