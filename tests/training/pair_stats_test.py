"""Statistics of the training pairs, against plain loops."""

import jax
import numpy as np
import pytest

from calince_jax.training.pair_stats import PairStatistics


def a_step(rng, n=40, **changes):
  matched = rng.choice([-1, 0, 1], n).astype(np.int8)
  made = {
    "matched": matched,
    "alignment_score": rng.normal(size=n).astype(np.float32) + matched,
    "confidence": rng.random(n).astype(np.float32),
    "weight": rng.random(n).astype(np.float32),
  }
  return made | changes


def test_pairs_are_summarised_as_by_plain_loops(rng):
  statistics = PairStatistics()
  steps = [a_step(rng) for _ in range(3)]
  for step in steps:
    statistics.add(jax.device_put(step))
  visits = [
    tuple(float(step[name][i]) for name in step)
    for step in steps
    for i in range(40)
    if step["matched"][i] != -1
  ]
  good = [visit for visit in visits if visit[0] == 1]
  bad = [visit for visit in visits if visit[0] == 0]

  def auc(place):
    won = sum(
      (g[place] > b[place]) + (g[place] == b[place]) / 2
      for g in good
      for b in bad
    )
    return won / len(good) / len(bad)

  ece = 0.0
  for b in range(15):
    inside = [v for v in visits if int(v[2] * 15) == b]
    if inside:
      right = sum(v[0] for v in inside) - sum(v[2] for v in inside)
      ece += abs(right) / len(visits)
  w = [v[3] for v in visits]
  expected = {
    "auc": auc(1),
    "auc_confidence": auc(2),
    "ece": ece,
    "noise_rate_true": len(bad) / len(visits),
    "weight_matched": sum(v[3] for v in good) / len(good),
    "weight_mismatched": sum(v[3] for v in bad) / len(bad),
    "effective_sample_share": sum(w) ** 2 / sum(x * x for x in w) / len(w),
  }
  found = statistics.summary()
  assert found == pytest.approx({f"pairs/{k}": v for k, v in expected.items()})
  assert statistics.summary() == {}  # it forgets


def test_what_cannot_be_computed_is_absent(rng):
  statistics = PairStatistics()
  nothing = np.full(40, np.nan, np.float32)
  statistics.add(a_step(rng, alignment_score=nothing, confidence=nothing))
  assert statistics.summary().keys() == {
    "pairs/noise_rate_true",
    "pairs/weight_matched",
    "pairs/weight_mismatched",
    "pairs/effective_sample_share",
  }
  statistics.add(a_step(rng, matched=np.ones(40, np.int8)))
  found = statistics.summary()
  assert "pairs/auc" not in found and "pairs/ece" in found
  assert found["pairs/noise_rate_true"] == 0
  assert "pairs/weight_mismatched" not in found
  statistics.add(a_step(rng, matched=np.full(40, -1, np.int8)))
  assert statistics.summary() == {}


def test_a_resumed_run_has_the_pairs_of_the_checkpoint(rng):
  steps = [a_step(rng, pair_index=np.arange(40)) for _ in range(2)]
  whole, resumed = PairStatistics(), PairStatistics()
  assert whole.arrays() == {}
  for step in steps:
    whole.add(step)
  saved = whole.arrays()
  assert {name: array.dtype for name, array in saved.items()} == {
    "matched": np.int8,
    "alignment_score": np.float32,
    "confidence": np.float32,
    "weight": np.float32,
  }
  for name, array in saved.items():
    expected = np.concatenate([step[name] for step in steps])
    np.testing.assert_array_equal(array, expected)
  # Older checkpoints call the alignment score `score`.
  resumed.add(
    {("score" if k == "alignment_score" else k): v for k, v in saved.items()}
  )
  assert resumed.summary() == whole.summary()
