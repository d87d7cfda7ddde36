"""Which fold a pair belongs to: its score comes from a model of the others."""

import collections
from collections.abc import Sequence

import numpy as np

from calince_jax.errors import UserError


def assign_folds(
  clip: np.ndarray, groups: Sequence[str], *, folds: int, seed: int
) -> tuple[np.ndarray, str]:
  """Deals pairs into folds of about one size.

  All pairs of a clip share a fold. Where the clips have groups (a recording, a
  place, a day), and at least two for each fold, all clips of a group do too: a
  scorer that has seen the room may rank by the room.

  Args:
    clip: int [P], the clip of each pair.
    groups: of each pair's clip; "" is no group.
    folds: K >= 2.
    seed: of the order in which equal ones are dealt.

  Returns:
    int64 [P] in [0, K), and what was kept together: "group" or "clip".

  Raises:
    UserError: there are fewer clips than folds.
  """
  named = {group for group in groups if group}
  by_group = len(named) >= 2 * folds and all(groups)
  units = list(groups) if by_group else [int(i) for i in clip]
  sizes = collections.Counter(units)
  if len(sizes) < folds:
    raise UserError(
      f"{len(sizes)} clips are too few for --folds={folds}; give fewer folds"
    )
  names = sorted(sizes)
  order = np.random.default_rng(seed).permutation(len(names))
  # The largest first, each to the fold that is smallest so far.
  order = sorted(order, key=lambda i: -sizes[names[i]])
  filled = np.zeros(folds, np.int64)
  fold_of = {}
  for i in order:
    k = int(filled.argmin())
    fold_of[names[i]] = k
    filled[k] += sizes[names[i]]
  return (
    np.array([fold_of[unit] for unit in units], np.int64),
    "group" if by_group else "clip",
  )
