"""Retrieval metrics, each with the value that random similarities would give.

R@k is the mean of P(rank <= k) in percent, MedR and MeanR the median and the
mean of the expected rank, 1 is best; nDCG@10 in percent; ranks.py says how ties
are counted.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from calince_jax.errors import UserError
from calince_jax.evals import bootstrap, ranks
from calince_jax.evals.ranks import TIE_RULE

__all__ = [
  "KS",
  "TIE_RULE",
  "chance",
  "class_retrieval_metrics",
  "dual_softmax",
  "intervals_of",
  "metrics_of",
  "rank_both_ways",
  "retrieval_metrics",
  "text_video_chance",
  "text_video_metrics",
]

KS = (1, 5, 10)


def retrieval_metrics(
  similarities: np.ndarray, relevant: np.ndarray | Sequence[Sequence[int]]
) -> dict[str, float]:
  """R@1, R@5, R@10 in percent, MedR and MeanR (1 is best).

  Args:
    similarities: float32 [Q, G].
    relevant: bool [Q, G], or for each query the gallery indices of its right
      items. Every query has at least one.

  Raises:
    UserError: similarities of another dtype (bfloat16 invents ties) or that are
      not finite, or a query without a right item.
  """
  relevant = _as_mask(relevant, similarities.shape)
  counts = ranks.count(similarities, relevant)
  _require_a_right_item(counts[2])
  return _summary(*counts, KS)


def text_video_metrics(
  text_embeddings: np.ndarray,
  video_embeddings: np.ndarray,
  video_of_text: np.ndarray,
  *,
  dual_softmax_temperature: float | None = None,
) -> dict[str, float]:
  """The metrics of both directions: t2v_R@1, ..., v2t_MeanR, and nDCG@10.

  Text to video has one query per caption. Video to text has one per video, its
  rank that of the best of its captions; a video without a caption is no query
  but stays in the gallery.

  Args:
    text_embeddings: float32 [Q, D].
    video_embeddings: float32 [G, D].
    video_of_text: int [Q], the row of the video that each caption belongs to.
    dual_softmax_temperature: if given, the similarities go through
      `dual_softmax`, which uses all queries at once; report that in a column of
      its own.
  """
  return metrics_of(
    rank_both_ways(
      text_embeddings,
      video_embeddings,
      video_of_text,
      dual_softmax_temperature=dual_softmax_temperature,
    )
  )


def metrics_of(ranked: Mapping[str, "Ranked"]) -> dict[str, float]:
  """The metrics of each direction of `rank_both_ways`."""
  result = {}
  for name, query in ranked.items():
    summary = _summary(query.above, query.wrong, query.right, KS)
    summary["nDCG@10"] = 100 * float(query.ndcg.mean())
    result |= {f"{name}_{metric}": x for metric, x in summary.items()}
  return result


def intervals_of(
  ranked: Mapping[str, "Ranked"], seed: int
) -> dict[str, list[float]]:
  """The 95 % bootstrap interval, over clips, of each of `metrics_of`."""
  result = {}
  for name, query in ranked.items():
    counts = (query.above, query.wrong, query.right)
    rank = _expected_rank(*counts)
    values = {f"R@{k}": 100 * ranks.hit_probability(*counts, k) for k in KS}
    values |= {"MedR": rank, "MeanR": rank, "nDCG@10": 100 * query.ndcg}
    found = bootstrap.intervals(
      values, query.clip, seed=seed, medians=("MedR",)
    )
    result |= {f"{name}_{metric}": x for metric, x in found.items()}
  return result


class Ranked(NamedTuple):
  """Of the queries of one direction, [Q] each; see ranks.py."""

  above: np.ndarray
  wrong: np.ndarray
  right: np.ndarray
  ndcg: np.ndarray
  clip: np.ndarray


def rank_both_ways(
  text_embeddings: np.ndarray,
  video_embeddings: np.ndarray,
  video_of_text: np.ndarray,
  *,
  dual_softmax_temperature: float | None = None,
) -> dict[str, Ranked]:
  """Where the right items stand, `t2v` and `v2t`; see `text_video_metrics`."""
  video_of_text = np.asarray(video_of_text)
  videos = np.arange(len(video_embeddings))
  if len(video_of_text) != len(text_embeddings):
    raise UserError(
      f"{len(text_embeddings)} texts but {len(video_of_text)} video indices"
    )
  if not np.isin(video_of_text, videos).all():
    raise UserError("video_of_text names a video that is not in the gallery")
  with_text = np.unique(video_of_text)
  if dual_softmax_temperature is None:
    t2v = ranks.similarity_blocks(text_embeddings, video_embeddings)
    v2t = ranks.similarity_blocks(video_embeddings[with_text], text_embeddings)
  else:
    both = dual_softmax(
      ranks.inner_products(text_embeddings, video_embeddings),
      dual_softmax_temperature,
    )
    t2v, v2t = [both], [both.T[with_text]]
  result = {}
  for name, blocks, queries, gallery in (
    ("t2v", t2v, video_of_text, videos),
    ("v2t", v2t, with_text, video_of_text),
  ):
    columns, start = [], 0
    for similarities in blocks:
      keys = queries[start : start + len(similarities)]
      relevant = keys[:, None] == gallery[None, :]
      counts = ranks.count(similarities, relevant)
      columns.append((*counts, ranks.ndcg(similarities, relevant, 10)))
      start += len(similarities)
    arrays = [np.concatenate(column) for column in zip(*columns, strict=True)]
    result[name] = Ranked(*arrays, queries)
  return result


def chance(
  num_relevant: int | Sequence[int], gallery_size: int
) -> dict[str, float]:
  """What `retrieval_metrics` expects of random similarities without ties.

  With m right items among G: R@k = 100 (1 - C(G-m, k) / C(G, k)), which is
  100 k / G for m = 1, and MeanR = 1 + (G-m) / (m+1). MedR is the median of the
  distribution of ranks of all queries together: (G+1) / 2 for m = 1 and, for
  more, what the median of many queries tends to.

  Args:
    num_relevant: m of each query, or one m for all.
    gallery_size: G.
  """
  m = np.atleast_1d(num_relevant)
  _require_a_right_item(m)
  result = _summary(np.zeros_like(m), gallery_size - m, m, KS)
  sizes, share = np.unique(m, return_counts=True)
  k = np.arange(1, gallery_size + 1)
  below = sum(
    s * ranks.hit_probability(0, gallery_size - size, size, k)
    for size, s in zip(sizes, share / len(m), strict=True)
  )
  # Where exactly half of the mass lies at or below a rank, the median is half
  # way to the next one, as numpy's is.
  low = np.searchsorted(below, 0.5 - 1e-9)
  high = np.searchsorted(below, 0.5 + 1e-9)
  return result | {"MedR": float(k[low] + k[high]) / 2}


def text_video_chance(
  video_of_text: np.ndarray, num_videos: int
) -> dict[str, float]:
  """The values of `text_video_metrics` that random similarities give."""
  _, captions = np.unique(video_of_text, return_counts=True)
  t2v = chance(1, num_videos) | {"nDCG@10": _chance_ndcg(1, num_videos)}
  texts = len(video_of_text)
  v2t = chance(captions, texts) | {"nDCG@10": _chance_ndcg(captions, texts)}
  return {f"t2v_{name}": x for name, x in t2v.items()} | {
    f"v2t_{name}": x for name, x in v2t.items()
  }


def _chance_ndcg(num_relevant: int | np.ndarray, gallery_size: int) -> float:
  """nDCG@10 of random similarities, in percent: each place is right alike."""
  k = min(10, gallery_size)
  gain = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
  m = np.atleast_1d(num_relevant)
  share = m / gallery_size
  return 100 * float((share * gain[-1] / gain[np.minimum(m, k) - 1]).mean())


def dual_softmax(similarities: np.ndarray, temperature: float) -> np.ndarray:
  """log [softmax over the gallery x softmax over the queries], float32 [Q, G].

  It ranks for each query with the help of all other queries, which a person who
  searches does not have: never mix it with plain similarities.

  Args:
    similarities: float32 [Q, G].
    temperature: the similarities are divided by it; positive.
  """
  ranks.check_similarities(similarities)
  if temperature <= 0:
    raise UserError(f"dual softmax temperature {temperature} is not positive")
  scaled = similarities.astype(np.float64) / temperature
  gallery = logsumexp(scaled, axis=1, keepdims=True)
  queries = logsumexp(scaled, axis=0, keepdims=True)
  return (2 * scaled - gallery - queries).astype(np.float32)


def class_retrieval_metrics(
  query_features: np.ndarray,
  query_labels: Sequence,
  gallery_features: np.ndarray,
  gallery_labels: Sequence,
  *,
  center: bool = True,
  ks: Sequence[int] = (1, 5, 10, 20, 50),
) -> dict:
  """Video retrieval by class: any of the top k has the query's class.

  Queries are the test split and the gallery is the training split. Features
  are centred on the mean of their own split and L2-normalised.

  Args:
    query_features: float [Q, D].
    query_labels: Q class names or numbers.
    gallery_features: float [G, D].
    gallery_labels: G class names or numbers.
    center: whether the means are taken off.
    ks: the k of R@k.

  Returns:
    {"metrics": {"R@1": percent, ...}, "chance": the same for random
    similarities,
    "queries_without_class": queries whose class the gallery lacks, which count
    as wrong}.
  """
  for what, features, labels in (
    ("query", query_features, query_labels),
    ("gallery", gallery_features, gallery_labels),
  ):
    if len(features) != len(labels) or not len(labels):
      raise UserError(
        f"{len(features)} {what} features but {len(labels)} labels; each clip "
        "needs one label"
      )
  labels = np.concatenate([np.asarray(query_labels), gallery_labels])
  classes = np.unique(labels, return_inverse=True)[1]
  query_class, gallery_class = np.split(classes, [len(query_labels)])
  counts = ranks.count_blocks(
    ranks.similarity_blocks(
      _normalize(query_features, center), _normalize(gallery_features, center)
    ),
    query_class,
    gallery_class,
  )
  right = np.bincount(gallery_class, minlength=classes.max() + 1)[query_class]
  random = (np.zeros_like(right), len(gallery_class) - right, right)
  return {
    "metrics": {
      f"R@{k}": 100 * float(ranks.hit_probability(*counts, k).mean())
      for k in ks
    },
    "chance": {
      f"R@{k}": 100 * float(ranks.hit_probability(*random, k).mean())
      for k in ks
    },
    "queries_without_class": int(np.sum(right == 0)),
  }


def _expected_rank(above, wrong, right):
  return 1 + above + wrong / (right + 1)


def _summary(
  above: np.ndarray, wrong: np.ndarray, right: np.ndarray, ks: Sequence[int]
) -> dict[str, float]:
  rank = _expected_rank(above, wrong, right)
  result = {
    f"R@{k}": 100 * float(ranks.hit_probability(above, wrong, right, k).mean())
    for k in ks
  }
  return result | {
    "MedR": float(np.median(rank)),
    "MeanR": float(rank.mean()),
  }


def _normalize(features: np.ndarray, center: bool) -> np.ndarray:
  features = np.asarray(features, np.float64)
  if center:
    features = features - features.mean(axis=0)
  norm = np.linalg.norm(features, axis=1, keepdims=True)
  return (features / np.maximum(norm, 1e-12)).astype(np.float32)


def _as_mask(
  relevant: np.ndarray | Sequence[Sequence[int]], shape: tuple[int, int]
) -> np.ndarray:
  if not (isinstance(relevant, np.ndarray) and relevant.dtype == bool):
    mask = np.zeros(shape, bool)
    if len(relevant) != shape[0]:
      raise UserError(
        f"{shape[0]} queries but {len(relevant)} lists of right items"
      )
    for row, items in zip(mask, relevant, strict=True):
      row[np.asarray(items, np.int64)] = True
    return mask
  if relevant.shape != shape:
    raise UserError(
      f"relevant is {relevant.shape} but similarities are {shape}"
    )
  return relevant


def _require_a_right_item(right: np.ndarray) -> None:
  if not len(right):
    raise UserError("there is no query to evaluate")
  if (right < 1).any():
    raise UserError(f"query {int(np.argmin(right))} has no right item")
