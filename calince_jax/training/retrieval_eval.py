"""Zero-shot retrieval during training, on the run's devices."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from calince_jax.data.input.sampling import Sampling
from calince_jax.data.records.reader import ClipReader
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.evals import retrieval
from calince_jax.inference import encode
from calince_jax.models.cali_nce import CaliNCE
from calince_jax.runtime import sharding


class RetrievalEval:
  """Retrieval on a few splits, with the parameters sharded as in training."""

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
    self._mesh = mesh
    self._splits = {
      name: encode.open_split(
        reader,
        tokenizer,
        sampling,
        text_length=model.config.text_length,
        batch_size=batch_size,
        rows=sharding.local_rows(batch_size, mesh),
      )
      for name, reader in readers.items()
    }

    def encoder(method):
      def embedding(params, inputs):
        with sharding.context_of(mesh):
          outputs = model.apply({"params": params}, *inputs, method=method)
        return outputs["embedding"]

      return jax.jit(
        embedding,
        in_shardings=(layout, sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh),
      )

    self._video = encoder(model.encode_video)
    self._text = encoder(model.encode_text)

  def chance(self) -> dict[str, float]:
    """The values of `metrics` that random similarities would give."""
    return {
      f"{name}/{metric}": value
      for name, split in self._splits.items()
      for metric, value in retrieval.text_video_chance(
        split.video_of_text, len(split.clips)
      ).items()
    }

  def metrics(self, params: Any) -> dict[str, float]:
    """`SPLIT/t2v_R@1` and the others of `retrieval.text_video_metrics`.

    All processes of a run call it together; each returns the same.

    Args:
      params: laid out as `layout` says.
    """

    def encode_text(ids, mask):
      return self._text(params, self._global(ids, mask))

    def encode_video(video):
      return {"embedding": self._video(params, self._global(video))}

    return {
      f"{name}/{metric}": value
      for name, split in self._splits.items()
      for metric, value in retrieval.text_video_metrics(
        encode.encode_texts(split, encode_text),
        encode.encode_videos(split, encode_video)["embedding"],
        split.video_of_text,
      ).items()
    }

  def _global(self, *rows: np.ndarray) -> tuple[jax.Array, ...]:
    """Global arrays of this process's rows."""
    named = {str(i): array for i, array in enumerate(rows)}
    return tuple(sharding.to_global(named, self._mesh).values())
