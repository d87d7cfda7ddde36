"""Examples that stand in the report: queries with their hits, and pairs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calince_jax.evals import ranks

HITS = 5  # of each query


def queries(
  text_embeddings: np.ndarray,
  video_embeddings: np.ndarray,
  video_of_text: np.ndarray,
  clips: Sequence[Mapping[str, Any]],
  picture: Callable[[int], str],
  *,
  count: int,
  seed: int,
) -> list[dict[str, Any]]:
  """A few text queries, drawn at random, and the clips nearest to each.

  Args:
    text_embeddings: float32 [Q, D].
    video_embeddings: float32 [N, D].
    video_of_text: int [Q], the clip that each caption belongs to.
    clips: N records.
    picture: from a clip's number to a base64 JPEG.
    count: of queries, if there are so many.
    seed: of the draw.

  Returns:
    [{"query", "rank" of its own clip, "hits": [{"id", "text", "similarity",
    "right": whether it is the query's clip, "thumbnail"}], best first}].
  """
  texts = [text for clip in clips for text in clip["texts"]]
  rng = np.random.default_rng(seed)
  count = min(count, len(texts))
  chosen = np.sort(rng.choice(len(texts), count, replace=False))
  similarities = ranks.inner_products(text_embeddings[chosen], video_embeddings)
  relevant = video_of_text[chosen][:, None] == np.arange(len(clips))
  above, wrong, right = ranks.count(similarities, relevant)
  return [
    {
      "query": texts[q],
      "rank": float(1 + above[i] + wrong[i] / (right[i] + 1)),
      "hits": [
        {
          "id": clips[v]["id"],
          "text": clips[v]["texts"][0],
          "similarity": float(similarities[i, v]),
          "right": bool(relevant[i, v]),
          "thumbnail": picture(v),
        }
        for v in np.argsort(-similarities[i], kind="stable")[:HITS]
      ],
    }
    for i, q in enumerate(chosen)
  ]


def worst_pairs(
  pairs: Sequence[Mapping[str, Any]], picture: Callable[[int], str]
) -> list[dict[str, Any]]:
  """The pairs as the report shows them.

  Args:
    pairs: with `record`, `id`, `text`, `confidence` and `matched` (1, 0, -1).
    picture: from a clip's number to a base64 JPEG.

  Returns:
    `id`, `text`, `confidence`, `matched` (None for unknown) and `thumbnail`.
  """
  return [
    {
      "id": pair["id"],
      "text": pair["text"],
      "confidence": pair["confidence"],
      "matched": None if pair["matched"] < 0 else pair["matched"],
      "thumbnail": picture(pair["record"]),
    }
    for pair in pairs
  ]
