"""Scores all pairs by rounds of cross-fitting, resumable after each."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from calince_jax.cleaning import cross_fit
from calince_jax.cleaning.cross_fit import Data, Scale
from calince_jax.cleaning.posterior import (
  Posterior,
  confidence_of,
  estimate,
  probits,
)
from calince_jax.files import atomic_file

MOST_ROUNDS = 5
UNCHANGED = 0.01  # mean change of a weight that ends the rounds
MOST_COMPARED = 10_000  # pairs whose clips are compared with every caption
NEAR_SAMPLE = 2_000  # pairs whose nearest captions are scored
NEAR_CAPTIONS = 5  # of each of them
BINS = 40  # of the histogram


@dataclasses.dataclass(frozen=True)
class Examined:
  """What is known of the pairs in the end.

  Attributes:
    score: held-out alignment score of each pair, float32 [P], in standard
      deviations of the negatives.
    posterior: noise rate and P(fits).
    separation: the share of (given, negative) in which the given pair scores
      higher; 0.5 is chance. Mismatched pairs are among the given ones.
    near, random: mean P(fits) of clips with the captions nearest to their own,
      and with any other captions.
    penalties: of the two ridge regressions.
    rounds: how many were needed.
    better: int64 [P], the pair whose caption fits the clip best, where that
      scores higher than its own; -1 where it does not or was not compared.
    better_score: its score, float32 [P], NaN where there is none.
    histogram: {"edges" [B + 1], "given", "negatives": counts [B]} of the score.
  """

  score: np.ndarray
  posterior: Posterior
  separation: float
  near: float
  random: float
  penalties: tuple[float, float]
  rounds: int
  better: np.ndarray
  better_score: np.ndarray
  histogram: dict[str, list]


def examine(
  data: Data, work: Path, *, seed: int, report: Callable[[str], None]
) -> Examined:
  """Fits, scores and weighs in turn, until the weights no longer change.

  In the first round all pairs weigh 1; then each weighs as much as it fits, so
  that wrong pairs teach the scorers of the other folds less.

  Args:
    data: see Data.
    work: folder for the result of each round; one that is there is taken.
    seed: of negatives and resampling.
    report: called with a line of progress.
  """
  weights = np.ones(len(data.fold), np.float32)
  penalties = None
  for number in range(MOST_ROUNDS):
    round_ = _round(data, work, number, weights, penalties, seed)
    penalties = tuple(float(p) for p in round_["penalties"])
    x, negatives = round_["x"], round_["negatives"]
    posterior = estimate(probits(x, negatives), data.clip, seed)
    change = np.abs(posterior.confidence - weights).mean()
    report(
      f"round {number + 1}: {100 * posterior.noise_rate:.0f} % of the captions"
      f" do not fit; weights changed by {change:.3f} on average"
    )
    weights = posterior.confidence
    if change < UNCHANGED:
      break
  known = np.isfinite(negatives)
  maps = round_["W"], round_["U"]
  scale = Scale(round_["mean"], round_["deviation"])
  near = _near(data, maps, scale, negatives, posterior, seed)
  z = probits(negatives[known], negatives)
  better, better_score = _better(data, maps, scale, x, posterior)
  return Examined(
    score=x,
    posterior=posterior,
    separation=float((x[:, None] > negatives)[known].mean()),
    near=near,
    random=float(
      confidence_of(z, posterior.noise_rate, posterior.shift).mean()
    ),
    penalties=penalties,
    rounds=number + 1,
    better=better,
    better_score=better_score,
    histogram=_histogram(x, negatives[known]),
  )


def _round(data, work, number, weights, penalties, seed):
  """The scores and models of a round, computed once."""
  path = work / f"round-{number}.npz"
  if not path.exists():
    sums = cross_fit.grams(data, weights, seed)
    penalties = penalties or cross_fit.choose_penalties(data, sums, seed)
    W, U = cross_fit.fit(sums, penalties)
    raw = cross_fit.score(data, (W, U), seed)
    scale = cross_fit.scale_of(raw)
    with atomic_file(path) as partial, open(partial, "wb") as file:
      np.savez(
        file,
        x=scale.join(raw.given).astype(np.float32),
        negatives=scale.join(raw.negatives).astype(np.float32),
        mean=scale.mean,
        deviation=scale.deviation,
        penalties=np.array(penalties),
        W=W.astype(np.float32),
        U=U.astype(np.float32),
      )
  with np.load(path) as saved:
    return dict(saved)


def _near(data, maps, scale, negatives, posterior, seed):
  """Mean P(fits) of clips with the captions nearest to their own."""
  P = len(data.fold)
  rng = np.random.default_rng([seed, 4])
  rows = np.sort(rng.choice(P, min(NEAR_SAMPLE, P), replace=False))
  count = min(NEAR_CAPTIONS, P - 1)
  captions = cross_fit.near_captions(data, rows, count).reshape(-1)
  rows = np.repeat(rows, count)
  known = (data.same[rows] != data.same[captions]) & (
    data.clip[rows] != data.clip[captions]
  )
  x = cross_fit.score_pairs(data, maps, scale, rows[known], captions[known])
  z = probits(x, negatives)
  return float(confidence_of(z, posterior.noise_rate, posterior.shift).mean())


def _better(data, maps, scale, x, posterior):
  """Of the least trusted pairs, the caption that fits the clip best."""
  P = len(data.fold)
  rows = np.argsort(posterior.confidence, kind="stable")[:MOST_COMPARED]
  best, highest = cross_fit.best_captions(data, maps, scale, rows)
  higher = (highest > x[rows]) & (data.same[best] != data.same[rows])
  better = np.full(P, -1, np.int64)
  better_score = np.full(P, np.nan, np.float32)
  better[rows[higher]] = best[higher]
  better_score[rows[higher]] = highest[higher]
  return better, better_score


def _histogram(x, negatives):
  low, high = np.percentile(np.concatenate([x, negatives]), [0.1, 99.9])
  edges = np.linspace(low, high, BINS + 1)
  return {
    "edges": edges.tolist(),
    "given": np.histogram(x.clip(low, high), edges)[0].tolist(),
    "negatives": np.histogram(negatives.clip(low, high), edges)[0].tolist(),
  }
