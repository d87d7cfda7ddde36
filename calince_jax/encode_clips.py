"""A model run over a split of a prepared data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from calince_jax.data import pipeline
from calince_jax.data.clip_dataset import ClipReader
from calince_jax.data.sampling import Sampling
from calince_jax.inference import VideoTextModel, posterior


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
) -> list[dict[str, Any]]:
  """Each caption of each clip: `logit`, `confidence`, `cosine`, and its row.

  The row is `record`, `pair_index`, `id`, `text`, `matched` (1, 0, -1).
  """
  model.check_score()
  pairs = []
  batches = pipeline.eval_batches(reader, sampling, batch_size=batch_size)
  for batch in batches:
    video = model.video_outputs(batch["video"])
    real = batch["record"][batch["record"] >= 0]
    clips = [without_frames(reader, i) | {"record": int(i)} for i in real]
    for turn in range(max(len(clip["texts"]) for clip in clips)):
      pairs += _score_turn(model, video, clips, turn)
  return pairs


def _score_turn(model, video, clips, turn):
  """The pairs of the clips' captions number `turn`, where there are so many."""
  texts = [clip["texts"][min(turn, len(clip["texts"]) - 1)] for clip in clips]
  B = video["embedding"].shape[0]
  text = model.text_outputs(
    *model.tokenize(texts + texts[-1:] * (B - len(texts)))
  )
  cosine = np.asarray((video["embedding"] * text["embedding"]).sum(axis=-1))
  logits = np.asarray(model.pair_logits(video, text))
  confidence = posterior(logits, model.calibration)
  return [
    {
      "record": clip["record"],
      "pair_index": clip["pair_indices"][turn],
      "id": clip["id"],
      "text": clip["texts"][turn],
      "matched": clip["matched"][turn],
      "confidence": float(confidence[i]),
      "logit": float(logits[i]),
      "cosine": float(cosine[i]),
    }
    for i, clip in enumerate(clips)
    if turn < len(clip["texts"])
  ]
