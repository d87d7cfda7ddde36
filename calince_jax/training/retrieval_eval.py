"""What a run is judged by while it trains: retrieval, and its pairs' scores.

RetrievalWatch   zero-shot retrieval of a few splits, on the run's devices
PairWatch        the scores of the training pairs against the known truth
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from sklearn import metrics as sklearn_metrics

from calince_jax.data.input import batches as pipeline
from calince_jax.data.input.sampling import Sampling
from calince_jax.data.records.reader import ClipReader
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.evals import calibration_metrics, retrieval
from calince_jax.models.cali_nce import CaliNCE
from calince_jax.runtime import sharding


class RetrievalWatch:
  """Zero-shot retrieval with the parameters where they lie in training."""

  def __init__(
    self,
    model: CaliNCE,
    readers: Mapping[str, ClipReader],
    tokenizer: Tokenizer,
    sampling: Sampling,
    *,
    batch_size: int,
    mesh: Mesh,
    layout: Any,
  ):
    """Reads the captions of every split.

    Args:
      model: see models/cali_nce.py.
      readers: of the splits, by name.
      tokenizer: of the captions.
      sampling: see Sampling; the middle view of each clip is taken.
      batch_size: of the global batch, a multiple of the mesh's `data` axis.
      mesh: of the run.
      layout: the shardings of the parameters.
    """
    self._model, self._layout, self._mesh = model, layout, mesh
    self._readers, self._batch_size = dict(readers), batch_size
    self._rows = sharding.local_rows(batch_size, mesh)
    self._clips = {
      split: pipeline.eval_batches(
        reader, sampling, batch_size=batch_size, rows=self._rows
      )
      for split, reader in self._readers.items()
    }
    self._video = self._encoder(model.encode_video)
    self._text = self._encoder(model.encode_text)
    self._texts = {
      split: _captions(reader, tokenizer, model.config.text_length)
      for split, reader in self._readers.items()
    }

  def chance(self) -> dict[str, float]:
    """The values of `metrics` that random scores would give."""
    return {
      f"{split}/{name}": value
      for split, reader in self._readers.items()
      for name, value in retrieval.text_video_chance(
        self._texts[split]["video"], len(reader)
      ).items()
    }

  def metrics(self, params: Any) -> dict[str, float]:
    """`SPLIT/t2v_R@1` and the others of `retrieval.text_video_metrics`.

    All hosts of a run call it together; each returns the same.

    Args:
      params: laid out as `layout` says.
    """
    return {
      f"{split}/{name}": value
      for split in self._readers
      for name, value in retrieval.text_video_metrics(
        self._encode_texts(params, split),
        self._encode_videos(params, split),
        self._texts[split]["video"],
      ).items()
    }

  def _encoder(self, method):
    def encode(params, inputs):
      outputs = self._model.apply({"params": params}, *inputs, method=method)
      return outputs["embedding"]

    return jax.jit(
      encode,
      in_shardings=(self._layout, sharding.batch_sharding(self._mesh)),
      out_shardings=sharding.replicated(self._mesh),
    )

  def _encode_videos(self, params, split):
    parts = []
    for batch in self._clips[split]:
      inputs = sharding.to_global({"video": batch["video"]}, self._mesh)
      parts.append(self._fetched(self._video, params, inputs["video"]))
    return np.concatenate(parts)[: len(self._readers[split])]

  def _encode_texts(self, params, split):
    B, texts = self._batch_size, self._texts[split]
    parts = []
    for start in range(0, len(texts["ids"]), B):
      # One shape, one compilation: the last is repeated.
      chosen = np.minimum(start + self._rows, len(texts["ids"]) - 1)
      inputs = sharding.to_global(
        {name: texts[name][chosen] for name in ("ids", "mask")}, self._mesh
      )
      parts.append(
        self._fetched(self._text, params, inputs["ids"], inputs["mask"])
      )
    return np.concatenate(parts)[: len(texts["ids"])]

  def _fetched(self, encode, params, *inputs):
    # At once: independent programs that run side by side may meet in another
    # order on another host, and then their collectives wait for ever.
    return np.asarray(encode(params, inputs), np.float32)


def _captions(reader, tokenizer, length):
  """`ids`, `mask` [Q, L] of a split's captions, and whose each is [Q]."""
  captions = [reader.read([i])[0]["texts"] for i in range(len(reader))]
  ids, mask = tokenizer.encode([t for own in captions for t in own], length)
  counts = [len(own) for own in captions]
  return {
    "ids": ids,
    "mask": mask,
    "video": np.repeat(np.arange(len(reader)), counts),
  }


WATCHED = ("matched", "score", "confidence", "weight")


class PairWatch:
  """Collects what the train step says of its pairs; see `summary`."""

  def __init__(self):
    """Nothing is collected yet."""
    self._seen: list[Mapping[str, np.ndarray]] = []

  def add(self, pairs: Mapping[str, np.ndarray]) -> None:
    """Takes the pairs of one step: `matched`, `score`, `confidence`, `weight`.

    Args:
      pairs: of the global batch, each [B]; what the train step returns.
    """
    self._seen.append(pairs)

  def visits(self) -> dict[str, np.ndarray]:
    """What `add` has taken since the last `summary`, joined; {} if nothing.

    Saved with a checkpoint, and given to `add` of a new PairWatch, it lets a
    run that goes on there say the same of its pairs.
    """
    return {
      name: np.concatenate([np.asarray(pairs[name]) for pairs in self._seen])
      for name in (WATCHED if self._seen else ())
    }

  def summary(self) -> dict[str, float]:
    """Judges the visits since the last call, and forgets them.

    Only visits whose truth is known count: n of them, with weights w.

    Returns:
      `pairs/auc` of the score and `pairs/auc_confidence` of the confidence;
      `pairs/ece` of the confidence; `pairs/noise_rate_true`;
      `pairs/weight_matched` and `pairs/weight_mismatched`, mean weights;
      `pairs/effective_sample_share`, (sum w)^2 / sum w^2 / n. What cannot be
      computed is absent.
    """
    if not self._seen:
      return {}
    matched, score, confidence, w = self.visits().values()
    self._seen = []
    known = matched != calibration_metrics.UNKNOWN
    if not known.any():
      return {}
    truth = matched[known] == 1
    score, confidence, w = (
      x[known].astype(np.float64) for x in (score, confidence, w)
    )
    result = {"noise_rate_true": float(1 - truth.mean())}
    both = truth.any() and not truth.all()
    for name, x in (("auc", score), ("auc_confidence", confidence)):
      if both and np.isfinite(x).all():
        result[name] = float(sklearn_metrics.roc_auc_score(truth, x))
    if np.isfinite(confidence).all():
      rows = calibration_metrics.reliability(confidence, truth)
      result["ece"] = calibration_metrics.expected_calibration_error(rows)
    for name, chosen in (("matched", truth), ("mismatched", ~truth)):
      if chosen.any() and np.isfinite(w).all():
        result[f"weight_{name}"] = float(w[chosen].mean())
    square = (w**2).sum()
    if square > 0:
      share = w.sum() ** 2 / square / len(w)
      result["effective_sample_share"] = float(share)
    return {f"pairs/{name}": value for name, value in result.items()}
