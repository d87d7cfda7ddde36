"""Bad numbers are named, spikes and collapse are seen, noise is not."""

import numpy as np
import pytest

from calince_jax.training import diagnostics

NAN = float("nan")


def step(**changes):
  metrics = {
    "correspondence": 0.5,
    "contrastive": 2.0,
    "loss": 2.5,
    "grad_norm": 1.0,
    "pairs": {
      "pair_index": np.arange(100, 120),
      "finite": np.ones(20, bool),
    },
  }
  return metrics | changes


def bad_pairs(*which):
  finite = np.ones(20, bool)
  finite[list(which)] = False
  return {"pair_index": np.arange(100, 120), "finite": finite}


@pytest.mark.parametrize(
  "changes, words",
  [
    (
      {"contrastive": NAN, "loss": NAN, "pairs": bad_pairs(7, 3)},
      "contrastive not finite, of pairs 103, 107",
    ),
    (
      {"correspondence": NAN, "contrastive": float("inf"), "loss": NAN},
      "correspondence, contrastive not finite, of no single pair",
    ),
    ({"grad_norm": NAN}, "the gradient not finite, of no single pair"),
    (
      {"contrastive": NAN, "pairs": bad_pairs(*range(20))},
      "contrastive not finite, of every pair",
    ),
    (
      {"contrastive": NAN, "pairs": bad_pairs(*range(11))},
      "100, 101, 102, 103, 104, 105, 106, 107 and 3 more",
    ),
  ],
)
def test_what_is_not_finite_is_named(changes, words):
  found = diagnostics.bad_numbers(step(**changes))
  assert words in diagnostics.bad_numbers_in_words(found)


def test_a_spike_is_seen_once_and_noise_is_not(rng):
  watch = diagnostics.SpikeWatch(10.0)
  losses = 3 + 0.1 * rng.normal(size=300) + np.linspace(2, 0, 300)
  losses[200] += 4
  seen = {i: watch.above(float(x)) for i, x in enumerate(losses)}
  assert [i for i, before in seen.items() if before is not None] == [200]
  assert seen[200] == pytest.approx(np.median(losses[136:200]))


def test_the_first_losses_and_none_at_all_are_no_spikes():
  watch = diagnostics.SpikeWatch(10.0)
  assert [watch.above(x) for x in (1.0, 100.0, NAN)] == [None] * 3
  off = diagnostics.SpikeWatch(0.0)
  assert [off.above(x) for x in [1.0] * 100 + [1e9]] == [None] * 101


def test_rounding_of_a_still_loss_is_no_spike():
  watch = diagnostics.SpikeWatch(10.0)
  for _ in range(64):
    watch.above(1.0)
  assert watch.above(1.001) is None
  assert watch.above(1.5) == 1.0
