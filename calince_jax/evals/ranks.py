"""The rank of a query's best right item, exact under ties.

A query's gallery holds right and wrong items; the query's rank is that of the
best right one. Let

    g = wrong items that score strictly higher than the best right item,
    t = wrong items tied with it,      r = right items tied with it (r >= 1).

A tie is broken at random, so the first right item stands behind g wrong ones
and behind those of the t that come before the first of the r:

    E[rank]      = 1 + g + t / (r + 1)
    P(rank <= k) = 1 - C(t, j) / C(t + r, j),    j = clip(k - g, 0, t + r)

With one right item these are 1 + g + t/2 and clip((k - g) / (t + 1), 0, 1).
Random scores are the case g = 0, t = all wrong items, r = all right items.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy.special import gammaln

from calince_jax.errors import UserError

TIE_RULE = (
  "rank = 1 + number of wrong items that score strictly higher, ties resolved "
  "by the expectation over random order; scores in float32"
)
BLOCK = 512  # queries scored at a time


def hit_probability(
  above: np.ndarray, wrong: np.ndarray, right: np.ndarray, k: int | np.ndarray
) -> np.ndarray:
  """P(rank <= k) given g, t and r; 0 where r is 0 (no right item)."""
  drawn = np.clip(k - above, 0, wrong + right)
  missed = np.clip(wrong - drawn, 0, None)
  log_miss = (
    gammaln(wrong + 1)
    - gammaln(missed + 1)
    - gammaln(wrong + right + 1)
    + gammaln(wrong + right - drawn + 1)
  )
  return np.where(drawn <= wrong, -np.expm1(log_miss), 1.0)


def count(
  scores: np.ndarray, relevant: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """g, t and r of each query, int64 [Q]; r = 0 where nothing is right."""
  check_scores(scores)
  best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
  tied = scores == best
  return (
    (scores > best).sum(axis=1),
    (tied & ~relevant).sum(axis=1),
    (tied & relevant).sum(axis=1),
  )


def count_blocks(
  blocks: Iterable[np.ndarray], query_keys: np.ndarray, gallery_keys: np.ndarray
) -> list[np.ndarray]:
  """`count` over blocks of queries; right = the item has the query's key."""
  counts, start = [], 0
  for scores in blocks:
    keys = query_keys[start : start + len(scores)]
    counts.append(count(scores, keys[:, None] == gallery_keys[None, :]))
    start += len(scores)
  return [np.concatenate(column) for column in zip(*counts, strict=True)]


def score_blocks(
  queries: np.ndarray, gallery: np.ndarray
) -> Iterator[np.ndarray]:
  """Float32 scores [<= BLOCK, G] of one block of queries after the other."""
  for start in range(0, len(queries), BLOCK):
    yield inner_products(queries[start : start + BLOCK], gallery)


def inner_products(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
  """Inner products, float32 [Q, G].

  They are summed in float64 and rounded once, so that equal embeddings have
  equal scores however the matrix product is cut into tiles.
  """
  for embeddings in (queries, gallery):
    if embeddings.dtype != np.float32:
      raise UserError(f"embeddings are {embeddings.dtype}, not float32")
  product = queries.astype(np.float64) @ gallery.astype(np.float64).T
  return product.astype(np.float32)


def check_scores(scores: np.ndarray) -> None:
  if scores.dtype != np.float32:
    raise UserError(
      f"scores are {scores.dtype}, not float32: rounded scores invent ties"
    )
  if not np.isfinite(scores).all():
    raise UserError("scores hold NaN or infinity: the embeddings are broken")
