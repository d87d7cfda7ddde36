"""The rank of a query's best right item, exact under ties.

A query's gallery holds right and wrong items; the query's rank is that of the
best right one. Let

    g = wrong items of strictly higher similarity than the best right item,
    t = wrong items tied with it,      r = right items tied with it (r >= 1).

A tie is broken at random, so the first right item stands behind g wrong ones
and behind those of the t that come before the first of the r:

    E[rank]      = 1 + g + t / (r + 1)
    P(rank <= k) = 1 - C(t, j) / C(t + r, j),    j = clip(k - g, 0, t + r)

With one right item these are 1 + g + t/2 and clip((k - g) / (t + 1), 0, 1).
Random similarities are the case g = 0 with t all wrong and r all right items.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy.special import gammaln

from calince_jax.errors import UserError

TIE_RULE = (
  "rank = 1 + number of wrong items of strictly higher similarity, ties"
  " resolved by the expectation over random order; similarities in float32"
)
BLOCK = 256  # queries that are ranked at a time


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
  similarities: np.ndarray, relevant: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """g, t and r of each query, int64 [Q]; r = 0 where nothing is right."""
  check_similarities(similarities)
  best = np.where(relevant, similarities, -np.inf).max(axis=1, keepdims=True)
  tied = similarities == best
  return (
    (similarities > best).sum(axis=1),
    (tied & ~relevant).sum(axis=1),
    (tied & relevant).sum(axis=1),
  )


def count_blocks(
  blocks: Iterable[np.ndarray], query_keys: np.ndarray, gallery_keys: np.ndarray
) -> list[np.ndarray]:
  """`count` over blocks of queries; right = the item has the query's key."""
  counts, start = [], 0
  for similarities in blocks:
    keys = query_keys[start : start + len(similarities)]
    counts.append(count(similarities, keys[:, None] == gallery_keys[None, :]))
    start += len(similarities)
  return [np.concatenate(column) for column in zip(*counts, strict=True)]


def ndcg(similarities: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
  """nDCG@k of each query, expected over random orders of ties, float64 [Q].

  DCG = sum_p rel_p / log2(1 + p) over places p = 1..k, over that of the best
  order (Jarvelin and Kekalainen, 2002). Of tied items each has the share of
  right ones among them (McSherry and Najork, 2008).

  Args:
    similarities: float32 [Q, G].
    relevant: bool [Q, G], at least one in each row.
    k: places that count.
  """
  G = similarities.shape[1]
  k = min(k, G)
  discount = 1 / np.log2(np.arange(2, k + 2))
  top = np.sort(np.partition(similarities, G - k, axis=1)[:, G - k :], axis=1)
  top = top[:, ::-1]  # the largest first
  gain = np.zeros(len(similarities))
  for place in range(k):
    tied = similarities == top[:, place : place + 1]
    gain += discount[place] * (tied & relevant).sum(axis=1) / tied.sum(axis=1)
  right = np.minimum(relevant.sum(axis=1), k)
  return gain / np.cumsum(discount)[right - 1]


def similarity_blocks(
  queries: np.ndarray, gallery: np.ndarray
) -> Iterator[np.ndarray]:
  """Yields `inner_products` of up to BLOCK queries at a time, [<= BLOCK, G]."""
  for start in range(0, len(queries), BLOCK):
    yield inner_products(queries[start : start + BLOCK], gallery)


def inner_products(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
  """Inner products, float32 [Q, G].

  They are summed in float64 and rounded once, so that equal embeddings are
  equally similar however the matrix product is cut into tiles.
  """
  for embeddings in (queries, gallery):
    if embeddings.dtype != np.float32:
      raise UserError(f"embeddings are {embeddings.dtype}, not float32")
  product = queries.astype(np.float64) @ gallery.astype(np.float64).T
  return product.astype(np.float32)


def check_similarities(similarities: np.ndarray) -> None:
  """UserError unless they are float32 and finite."""
  if similarities.dtype != np.float32:
    raise UserError(
      f"similarities are {similarities.dtype}, not float32: rounded ones invent"
      " ties"
    )
  if not np.isfinite(similarities).all():
    raise UserError(
      "similarities hold NaN or infinity: the embeddings are broken"
    )
