"""Encodes a split of a prepared data set: its clips and its captions.

Training does it on the run's devices, by all processes together; evaluation
does it on one device, in several test views. Both open a `Split`, and hand the
functions here an encoder that takes rows of a batch.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from calince_jax.data.input import batches as pipeline
from calince_jax.data.input.sampling import Sampling
from calince_jax.data.records.reader import ClipReader
from calince_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Split:
  """A split that is opened once and encoded as often as wanted.

  Attributes:
    clips: its N records without their frames.
    batches: of `eval_batches`, this process's rows.
    text_ids: int32 [Q, L], of every caption of every clip, in order.
    text_mask: bool [Q, L].
    video_of_text: int [Q], the clip that each caption belongs to.
    batch_size: of the global batch.
    rows: int [b], the rows of the global batch that this process holds.
    num_views: test views of each clip.
  """

  clips: list[dict[str, Any]]
  batches: Iterable[Mapping[str, np.ndarray]]
  text_ids: np.ndarray
  text_mask: np.ndarray
  video_of_text: np.ndarray
  batch_size: int
  rows: np.ndarray
  num_views: int


def open_split(
  reader: ClipReader,
  tokenizer: Tokenizer,
  sampling: Sampling,
  *,
  text_length: int,
  batch_size: int,
  rows: np.ndarray | None = None,
  num_clips: int = 1,
  num_crops: int = 1,
) -> Split:
  """Reads the captions of a split; nothing is decoded yet.

  Args:
    reader: of the split.
    tokenizer: of the captions.
    sampling: see Sampling.
    text_length: L.
    batch_size: clips and captions that are encoded at a time.
    rows: see `Split`; None: all.
    num_clips: test views along time.
    num_crops: test views across the frame.
  """
  clips = [without_frames(reader, i) for i in range(len(reader))]
  captions = [text for clip in clips for text in clip["texts"]]
  ids, mask = tokenizer.encode(captions, text_length)
  return Split(
    clips=clips,
    batches=pipeline.eval_batches(
      reader,
      sampling,
      batch_size=batch_size,
      rows=rows,
      num_clips=num_clips,
      num_crops=num_crops,
    ),
    text_ids=ids,
    text_mask=mask,
    video_of_text=np.repeat(
      np.arange(len(clips)), [len(clip["texts"]) for clip in clips]
    ),
    batch_size=batch_size,
    rows=np.arange(batch_size) if rows is None else rows,
    num_views=num_clips * num_crops,
  )


def encode_videos(
  split: Split, encode: Callable[[np.ndarray], Mapping[str, Any]]
) -> dict[str, np.ndarray]:
  """Encodes each clip; with several test views, the sum over the views.

  Args:
    split: see `open_split`.
    encode: from the rows of this process, uint8 [b, T, S, S, 3], to arrays of
      the global batch, [B, ...] each.

  Returns:
    Each of these arrays for the whole split, float32 [N, ...].
  """
  N = len(split.clips)
  sums: dict[str, np.ndarray] = {}
  for step, batch in enumerate(split.batches):
    outputs = encode(batch["video"])
    place = step * split.batch_size + np.arange(split.batch_size)
    real = place < N * split.num_views  # the last batch is filled up
    clip = place[real] // split.num_views
    # Each is fetched at once: independent programs that run side by side may
    # meet in another order on another host, and then their collectives wait
    # for ever.
    for name, value in outputs.items():
      value = np.asarray(value, np.float32)[real]
      if name not in sums:
        sums[name] = np.zeros((N, *value.shape[1:]), np.float32)
      np.add.at(sums[name], clip, value)
  return sums


def encode_texts(
  split: Split, encode: Callable[[np.ndarray, np.ndarray], Any]
) -> np.ndarray:
  """Encodes each caption of a split.

  Args:
    split: see `open_split`.
    encode: from the rows of this process, int32 and bool [b, L], to the
      embeddings of the global batch, [B, D].

  Returns:
    float32 [Q, D].
  """
  Q, parts = len(split.text_ids), []
  for start in range(0, Q, split.batch_size):
    # One shape, one compilation: the last caption is repeated.
    chosen = np.minimum(start + split.rows, Q - 1)
    embedding = encode(split.text_ids[chosen], split.text_mask[chosen])
    parts.append(np.asarray(embedding, np.float32))  # at once, see above
  return np.concatenate(parts)[:Q]


def mean_over_views(
  sums: Mapping[str, np.ndarray], num_views: int
) -> dict[str, np.ndarray]:
  """The mean over test views of what `encode_videos` returned.

  Args:
    sums: `embedding` float32 [N, D] and others, float32 [N, ...].
    num_views: that each is the sum of.

  Returns:
    `embedding`, normalised again, and the mean of each other.
  """
  embedding = sums["embedding"]
  norm = np.linalg.norm(embedding, axis=1, keepdims=True)
  means = {name: value / num_views for name, value in sums.items()}
  return means | {"embedding": embedding / np.maximum(norm, 1e-6)}


def without_frames(reader: ClipReader, index: int) -> dict[str, Any]:
  """A record but for its frames."""
  record = reader.read([index])[0]
  return {name: value for name, value in record.items() if name != "frames"}
