"""Alignment scores of the pairs of a split, and the confidence in each."""

from typing import Any

import jax
import numpy as np

from calince_jax.data.input import batches as pipeline
from calince_jax.data.input.sampling import Sampling
from calince_jax.data.records.reader import ClipReader
from calince_jax.errors import UserError
from calince_jax.inference.encode import without_frames
from calince_jax.inference.model import VideoTextModel
from calince_jax.losses import calibration


def score_pairs(
  model: VideoTextModel,
  reader: ClipReader,
  sampling: Sampling,
  *,
  batch_size: int,
  num_negatives: int,
  seed: int,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
  """Compares each clip with each of its captions and with others' captions.

  Of two heads, the one is asked that was not trained on a pair of this index.

  Args:
    model: with or without a trained head.
    reader: of the clips.
    sampling: the middle view of each clip is taken.
    batch_size: clips at a time, more than `num_negatives`.
    num_negatives: K, captions of other clips, drawn uniformly, for each pair.
    seed: of that draw.

  Returns:
    Of the P pairs, `record`, `pair_index`, `id`, `text`, `matched` (1, 0, -1);
    and `cosine` and, of a trained head, `head` (its logit), float32 [P, 1 + K],
    the given caption first.

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
      rows, outputs, text = _score_turn(model, video, clips, turn, before, K)
      pairs += rows
      parts.append(outputs)
      before = text if turn == 0 and len(clips) > K else before
  return pairs, {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }


def add_confidence(
  pairs: list[dict[str, Any]], outputs: dict[str, np.ndarray], scorer: str
) -> float:
  """Adds `alignment_score`, `confidence` and the given outputs to `pairs`.

  The densities behind the confidence are those of these pairs and negatives.

  Args:
    pairs: P of them.
    outputs: from `score_pairs`, [P, 1 + K] each.
    scorer: `head`, `cosine` or `both`.

  Returns:
    The estimate of the noise rate.
  """
  state, x = calibration.update_statistics(
    calibration.init_state(), outputs, scorer=scorer, decay=0.0
  )
  frozen = calibration.inference_calibration(
    state, scorer=scorer, noise_rate=None
  )
  given = {name: values[:, 0] for name, values in outputs.items()}
  _, confidence = calibration.inference_confidence(frozen, given)
  x, confidence = np.asarray(x), np.asarray(confidence)
  for i, pair in enumerate(pairs):
    pair |= {"alignment_score": float(x[i]), "confidence": float(confidence[i])}
    pair |= {name: float(values[i]) for name, values in given.items()}
  return frozen["noise_rate"]


def _score_turn(model, video, clips, turn, before, K):
  """The pairs of each clip's caption number `turn`, of clips that have it.

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
  outputs = jax.tree.map(lambda *x: np.stack(x, axis=1)[kept], *columns)
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
  return rows, outputs, text
