"""A model run over a split of a prepared data set."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from calince_jax.data.input import batches as pipeline
from calince_jax.data.input.sampling import Sampling
from calince_jax.data.records.reader import ClipReader
from calince_jax.errors import UserError
from calince_jax.inference.model import VideoTextModel


def encode_split(
  model: VideoTextModel,
  reader: ClipReader,
  sampling: Sampling,
  *,
  batch_size: int,
  num_clips: int = 1,
  num_crops: int = 1,
) -> dict[str, Any]:
  """Encodes each clip of a split, averaged over its test views.

  Returns:
    `embedding` float32 [N, D], the mean over views, normalised again;
    `feature` float32 [N, width], before the projection, the mean over views;
    `clips`, the N records without their frames.
  """
  sums: dict[str, np.ndarray] = {}
  batches = pipeline.eval_batches(
    reader,
    sampling,
    batch_size=batch_size,
    num_clips=num_clips,
    num_crops=num_crops,
  )
  for batch in batches:
    outputs = model.video_outputs(batch["video"])
    real = batch["record"] >= 0
    for name in ("embedding", "feature"):
      value = np.asarray(outputs[name], np.float32)[real]
      if name not in sums:
        sums[name] = np.zeros((len(reader), value.shape[1]), np.float32)
      np.add.at(sums[name], batch["record"][real], value)
  embedding = sums["embedding"]
  norm = np.linalg.norm(embedding, axis=1, keepdims=True)
  return {
    "embedding": embedding / np.maximum(norm, 1e-6),
    "feature": sums["feature"] / (num_clips * num_crops),
    "clips": [without_frames(reader, i) for i in range(len(reader))],
  }


def without_frames(reader: ClipReader, index: int) -> dict[str, Any]:
  """A record but for its frames."""
  record = reader.read([index])[0]
  return {name: value for name, value in record.items() if name != "frames"}


def encode_texts(
  model: VideoTextModel, texts: Sequence[str], *, batch_size: int
) -> np.ndarray:
  """The texts' embeddings, float32 [Q, D]."""
  parts = []
  for start in range(0, len(texts), batch_size):
    part = list(texts[start : start + batch_size])
    # One shape, one compilation.
    filled = part + part[-1:] * (batch_size - len(part))
    parts.append(model.encode_text(filled)[: len(part)])
  return np.concatenate(parts)


def score_pairs(
  model: VideoTextModel,
  reader: ClipReader,
  sampling: Sampling,
  *,
  batch_size: int,
  num_negatives: int,
  seed: int,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
  """Scores each caption of each clip, and that clip with others' captions.

  With two heads, the one that has not been trained on a pair of this index.

  Args:
    model: with or without a trained head.
    reader: of the clips.
    sampling: the middle view of each clip is taken.
    batch_size: clips at a time, more than `num_negatives`.
    num_negatives: K, captions of other clips, drawn uniformly, for each pair.
    seed: of that draw.

  Returns:
    Of the P pairs, `record`, `pair_index`, `id`, `text`, `matched` (1, 0, -1);
    and their scores: `cosine` and, of a trained head, `head`, float32
    [P, 1 + K], the given caption first.

  Raises:
    UserError: no more than K clips, or no more than K in a batch.
  """
  K = num_negatives
  if min(len(reader), batch_size) <= K:
    raise UserError(
      f"{K} captions of other clips are needed for each pair: use at least"
      f" {K + 1} clips, and --batch_size={K + 1} or more"
    )
  # Neighbours in a data set are often alike; negatives must be any clips.
  order = np.random.default_rng(seed).permutation(len(reader))
  pairs, parts, before = [], [], None
  batches = pipeline.eval_batches(
    reader, sampling, batch_size=batch_size, order=order
  )
  for batch in batches:
    video = model.video_outputs(batch["video"])
    real = batch["record"][batch["record"] >= 0]
    clips = [without_frames(reader, i) | {"record": int(i)} for i in real]
    for turn in range(max(len(clip["texts"]) for clip in clips)):
      rows, scores, text = _score_turn(model, video, clips, turn, before, K)
      pairs += rows
      parts.append(scores)
      before = text if turn == 0 and len(clips) > K else before
  names = parts[0]
  return pairs, {
    name: np.concatenate([p[name] for p in parts]) for name in names
  }


def _score_turn(model, video, clips, turn, before, K):
  """The pairs of the clips' captions number `turn`, where there are so many.

  The other captions are of this batch or, where it is too small, `before`.
  """
  texts = [clip["texts"][min(turn, len(clip["texts"]) - 1)] for clip in clips]
  B, n = video["embedding"].shape[0], len(clips)
  text = model.text_outputs(*model.tokenize(texts + texts[-1:] * (B - n)))
  index = np.zeros(B, np.int32)
  index[:n] = [
    clip["pair_indices"][min(turn, len(clip["texts"]) - 1)] for clip in clips
  ]
  kept = [i for i, clip in enumerate(clips) if turn < len(clip["texts"])]
  others = text if n > K else before
  size = n if n > K else B
  columns = []
  for k in range(1 + K):
    place = (np.arange(B) + k) % size
    other = jax.tree.map(lambda x, i=place: x[i], others) if k else text
    column = {"cosine": (video["embedding"] * other["embedding"]).sum(axis=-1)}
    if model.calibration["trained"]:
      column["head"] = model.held_out_logits(video, other, index)
    columns.append(column)
  scores = jax.tree.map(lambda *x: np.stack(x, axis=1)[kept], *columns)
  rows = [
    {
      "record": clips[i]["record"],
      "pair_index": clips[i]["pair_indices"][turn],
      "id": clips[i]["id"],
      "text": clips[i]["texts"][turn],
      "matched": clips[i]["matched"][turn],
    }
    for i in kept
  ]
  return rows, scores, text
