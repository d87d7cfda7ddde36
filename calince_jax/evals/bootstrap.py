"""Bootstrap intervals of retrieval metrics, over clips.

Captions of one clip are not independent, so clips are drawn, with all of their
queries (Efron and Tibshirani, 1993, on grouped data).
"""

import numpy as np

RESAMPLES = 1000


def intervals(
  values: dict[str, np.ndarray],
  clip_of_query: np.ndarray,
  *,
  seed: int,
  medians: tuple[str, ...] = (),
) -> dict[str, list[float]]:
  """The 95 % interval [low, high] of the mean of each of `values`.

  Args:
    values: float [Q] each, one number a query.
    clip_of_query: int [Q].
    seed: of the draws.
    medians: names whose median is meant instead.
  """
  rng = np.random.default_rng(seed)
  _, clip = np.unique(clip_of_query, return_inverse=True)
  num_clips = clip.max() + 1
  sizes = np.bincount(clip)
  sums = {
    name: np.bincount(clip, weights=value)
    for name, value in values.items()
    if name not in medians
  }
  order = {name: np.argsort(values[name], kind="stable") for name in medians}
  drawn: dict[str, list[float]] = {name: [] for name in values}
  for _ in range(RESAMPLES):
    weight = np.bincount(
      rng.integers(num_clips, size=num_clips), minlength=num_clips
    )
    queries = weight @ sizes
    for name, total in sums.items():
      drawn[name].append(weight @ total / queries)
    for name, places in order.items():
      reached = np.cumsum(weight[clip[places]])
      low = np.searchsorted(reached, queries / 2)
      high = np.searchsorted(reached, queries / 2, side="right")
      middle = values[name][places[[low, min(high, len(places) - 1)]]]
      drawn[name].append(middle.mean())
  return {
    name: [float(x) for x in np.percentile(sample, [2.5, 97.5])]
    for name, sample in drawn.items()
  }
