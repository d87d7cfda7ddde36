"""Scores of pairs by linear models that never saw them.

For each fold, two ridge regressions are fitted on the other folds: from video
features v to text features t, and back. A pair's raw scores are the cosines

    cos(W v, t)   and   cos(v, U t),
    W = argmin sum_i w_i |t_i - W v_i|^2 + lambda tr(C) / d |W|^2,  U likewise

with C = sum_i w_i v_i v_i^T, in closed form from Gram matrices of the folds,
so that one pass over the data serves every fold. Cross-fitting as in
Chernozhukov et al. (2018). Scored on pairs that it was fitted on, a model finds
no mismatch: it has learned them.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

BLOCK = 1024  # pairs; negatives are other pairs of the block
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
MOST_NEGATIVES = 64  # of a pair
SAMPLE = 20_000  # pairs on which the penalties are chosen
CAPTIONS = 8192  # at a time, where one clip is compared with all
DIRECTIONS = ("video_to_text", "text_to_video")


@dataclasses.dataclass(frozen=True)
class Data:
  """What is scored.

  Attributes:
    video: float32 [P, d], a row for each pair, maybe a memory map.
    text: float32 [P, e], likewise.
    same: int64 [P]; pairs with the same number share a caption, and are no
      negatives of each other.
    clip: int64 [P]; pairs of one clip are no negatives of each other either.
    fold: int64 [P].
  """

  video: np.ndarray
  text: np.ndarray
  same: np.ndarray
  clip: np.ndarray
  fold: np.ndarray


@dataclasses.dataclass(frozen=True)
class RawScores:
  """Cosines in both directions, float32, DIRECTIONS first.

  Attributes:
    given: [2, P].
    negatives: [2, P, K], NaN where a pair has fewer negatives.
  """

  given: np.ndarray
  negatives: np.ndarray


def blocks(data: Data, seed: int, most: int | None = None) -> Iterator[tuple]:
  """(fold, rows) with rows of one fold, at most BLOCK, in a random order."""
  rng = np.random.default_rng([seed, 1])
  left = len(data.fold) if most is None else most
  share = left / len(data.fold)
  for k in range(int(data.fold.max()) + 1):
    rows = rng.permutation(np.flatnonzero(data.fold == k))
    rows = rows[: max(2, round(share * len(rows)))]
    parts = -(-len(rows) // BLOCK)
    for part in np.array_split(rows, parts):
      yield k, np.sort(part)


def grams(data: Data, weights: np.ndarray, seed: int) -> list[np.ndarray]:
  """Weighted sums over each fold, [v^T v, t^T t, v^T t], float64 [K, ., .]."""
  K = int(data.fold.max()) + 1
  d, e = data.video.shape[1], data.text.shape[1]
  sums = [np.zeros((K, *s)) for s in ((d, d), (e, e), (d, e))]
  for k, rows in blocks(data, seed):
    v, t, w = (_padded(x, rows) for x in (data.video, data.text, weights))
    for total, part in zip(sums, _gram(v, t, w), strict=True):
      total[k] += np.asarray(part, np.float64)
  return sums


def fit(
  sums: list[np.ndarray], penalties: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
  """W^T [K, d, e] and U^T [K, e, d] of each fold, from all the others."""
  vv, tt, vt = (s.sum(axis=0) - s for s in sums)
  return (
    _ridge(vv, vt, penalties[0]),
    _ridge(tt, np.swapaxes(vt, 1, 2), penalties[1]),
  )


def score(
  data: Data,
  maps: tuple[np.ndarray, np.ndarray],
  seed: int,
  most: int | None = None,
) -> RawScores:
  """Scores each pair, and its clip with other captions of its block.

  Args:
    data: see Data.
    maps: from `fit`.
    seed: of the order, which decides the negatives.
    most: score about so many pairs alone; the others stay NaN.
  """
  smallest = min(len(rows) for _, rows in blocks(data, seed))
  K = max(1, min(MOST_NEGATIVES, smallest - 1))
  P = len(data.fold)
  given = np.full((2, P), np.nan, np.float32)
  negatives = np.full((2, P, K), np.nan, np.float32)
  for k, rows in blocks(data, seed, most):
    n = len(rows)
    W, U = (m[k].astype(np.float32) for m in maps)
    v, t = _padded(data.video, rows), _padded(data.text, rows)
    order = np.random.default_rng([seed, 2, int(rows[0])]).permutation(n)
    # Negative j of the pair at place i of the order is the one at i + j.
    other = np.stack([order[(np.argsort(order) + j) % n] for j in range(1 + K)])
    padded = np.zeros((1 + K, len(v)), np.int32)
    padded[:, :n] = other
    values = np.asarray(_cosines(v, t, W, U, padded))[:, :, :n]
    known = (data.same[rows][other] != data.same[rows]) & (
      data.clip[rows][other] != data.clip[rows]
    )
    given[:, rows] = values[:, 0]
    negatives[:, rows] = np.where(known, values, np.nan)[:, 1:].swapaxes(1, 2)
  return RawScores(given, negatives)


def choose_penalties(
  data: Data, sums: list[np.ndarray], seed: int
) -> tuple[float, float]:
  """The penalty of each direction with which given pairs stand out most.

  By the share of (pair, negative) in which the pair scores higher, on at most
  SAMPLE pairs; no truth is looked at.
  """
  separation = []
  for penalty in PENALTIES:
    raw = score(data, fit(sums, (penalty, penalty)), seed, SAMPLE)
    scored = np.isfinite(raw.given[0])
    given, negatives = raw.given[:, scored, None], raw.negatives[:, scored]
    known = np.isfinite(negatives)
    higher = ((given > negatives) & known).sum(axis=(1, 2))
    separation.append(higher / known.sum(axis=(1, 2)))
  best = np.argmax(separation, axis=0)
  return PENALTIES[best[0]], PENALTIES[best[1]]


@dataclasses.dataclass(frozen=True)
class Scale:
  """Mean and standard deviation of the negatives' cosines, float [2] each."""

  mean: np.ndarray
  deviation: np.ndarray

  def join(self, cosines: np.ndarray) -> np.ndarray:
    """x of cosines [2, ...]: the mean of both directions, standardised."""
    shape = (2,) + (1,) * (cosines.ndim - 1)
    mean, deviation = self.mean.reshape(shape), self.deviation.reshape(shape)
    return ((cosines - mean) / deviation).mean(axis=0)


def scale_of(raw: RawScores) -> Scale:
  """The scale of a round's scores."""
  deviation = np.nanstd(raw.negatives, axis=(1, 2))
  return Scale(
    np.nanmean(raw.negatives, axis=(1, 2)),
    np.where(deviation > 0, deviation, 1.0).astype(np.float32),
  )


def best_captions(
  data: Data,
  maps: tuple[np.ndarray, np.ndarray],
  scale: Scale,
  rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Of all captions, the one that fits each asked pair's clip best.

  Args:
    data, maps, scale: of the round.
    rows: int [n], the pairs that are asked about.

  Returns:
    int64 [n], the pair whose caption it is, and its x, float32 [n].
  """
  best = np.zeros(len(rows), np.int64)
  highest = np.full(len(rows), -np.inf, np.float32)
  for k in np.unique(data.fold[rows]):
    asked = np.flatnonzero(data.fold[rows] == k)
    W, U = (m[k].astype(np.float32) for m in maps)
    v = np.asarray(data.video[rows[asked]], np.float32)
    predicted, v = unit(v @ W), unit(v)
    for start in range(0, len(data.fold), CAPTIONS):
      t = np.asarray(data.text[start : start + CAPTIONS], np.float32)
      x = scale.join(np.stack([predicted @ unit(t).T, v @ unit(t @ U).T]))
      place = x.argmax(axis=1)
      value = x[np.arange(len(asked)), place]
      better = value > highest[asked]
      highest[asked[better]] = value[better]
      best[asked[better]] = start + place[better]
  return best, highest


def near_captions(data: Data, rows: np.ndarray, count: int) -> np.ndarray:
  """The captions nearest to those of the asked pairs, int64 [n, count].

  By the cosine of the text features, among at most SAMPLE captions; captions
  with the same words, and those of the same clip, are left out.
  """
  others = np.arange(len(data.fold))
  if len(others) > SAMPLE:
    others = np.random.default_rng(0).choice(others, SAMPLE, replace=False)
  t = unit(np.asarray(data.text[others], np.float32))
  nearest = np.zeros((len(rows), count), np.int64)
  for start in range(0, len(rows), BLOCK):
    part = rows[start : start + BLOCK]
    cosines = unit(np.asarray(data.text[part], np.float32)) @ t.T
    cosines[data.same[part][:, None] == data.same[others]] = -np.inf
    cosines[data.clip[part][:, None] == data.clip[others]] = -np.inf
    places = np.argpartition(-cosines, count, axis=1)[:, :count]
    nearest[start : start + len(part)] = others[places]
  return nearest


def score_pairs(
  data: Data,
  maps: tuple[np.ndarray, np.ndarray],
  scale: Scale,
  rows: np.ndarray,
  captions: np.ndarray,
) -> np.ndarray:
  """x of the clips of `rows` with the captions of other pairs, float32 [n].

  Args:
    data, maps, scale: of the round.
    rows, captions: int [n], numbers of pairs.
  """
  x = np.zeros(len(rows), np.float32)
  for k in np.unique(data.fold[rows]):
    asked = np.flatnonzero(data.fold[rows] == k)
    W, U = (m[k].astype(np.float32) for m in maps)
    v = np.asarray(data.video[rows[asked]], np.float32)
    t = np.asarray(data.text[captions[asked]], np.float32)
    x[asked] = scale.join(
      np.stack([(unit(v @ W) * unit(t)).sum(1), (unit(v) * unit(t @ U)).sum(1)])
    )
  return x


def unit(x: np.ndarray) -> np.ndarray:
  """Rows of length 1; zeros stay zeros."""
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def _ridge(gram, cross, penalty):
  d = gram.shape[-1]
  size = penalty * np.trace(gram, axis1=1, axis2=2) / d
  ridge = np.maximum(size, 1e-9)[:, None, None] * np.eye(d)
  return np.linalg.solve(gram + ridge, cross)


def _padded(array, rows):
  """The rows as float32 [BLOCK, ...] on the devices; zeros below them."""
  values = np.asarray(array[rows], np.float32)
  size = -(-BLOCK // jax.device_count()) * jax.device_count()
  if len(rows) <= size // 8:  # a small data set: a smaller program
    size = -(-size // 8 // jax.device_count()) * jax.device_count()
  padding = [(0, size - len(rows))] + [(0, 0)] * (values.ndim - 1)
  return jax.device_put(np.pad(values, padding), _over_devices())


@functools.cache
def _over_devices():
  """Rows over all devices of this process."""
  mesh = jax.make_mesh(
    (jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)
  )
  return NamedSharding(mesh, PartitionSpec("data"))


@jax.jit
def _gram(v, t, w):
  wv = v * w[:, None]
  return wv.T @ v, (t * w[:, None]).T @ t, wv.T @ t


@jax.jit
def _cosines(v, t, W, U, other):
  """float32 [2, 1 + K, b] of each clip with the captions other[j]."""

  def normalised(x):
    length = jnp.linalg.norm(x, axis=1, keepdims=True)
    return x / jnp.maximum(length, 1e-9)

  predicted_t, t_unit = normalised(v @ W), normalised(t)
  predicted_v, v_unit = normalised(t @ U), normalised(v)

  def turn(j):
    return jnp.stack(
      [
        (predicted_t * t_unit[other[j]]).sum(axis=1),
        (v_unit * predicted_v[other[j]]).sum(axis=1),
      ]
    )

  return jax.lax.map(turn, jnp.arange(other.shape[0])).swapaxes(0, 1)
