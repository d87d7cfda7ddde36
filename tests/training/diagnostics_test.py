"""Non-finite numbers are named; spikes are detected, noise is not."""

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
  "changes, message",
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
def test_non_finite_terms_and_pairs_are_named(changes, message):
  metrics = step(**changes)
  report = diagnostics.non_finite(metrics, metrics.pop("pairs"))
  assert message in diagnostics.describe(report)


def test_a_spike_is_detected_once_and_noise_is_not(rng):
  detector = diagnostics.SpikeDetector(10.0)
  losses = 3 + 0.1 * rng.normal(size=300) + np.linspace(2, 0, 300)
  losses[200] += 4
  seen = {
    i: detector.median_before_spike(float(x)) for i, x in enumerate(losses)
  }
  assert [i for i, before in seen.items() if before is not None] == [200]
  assert seen[200] == pytest.approx(np.median(losses[136:200]))


def test_first_losses_are_no_spikes_and_zero_turns_detection_off():
  detector = diagnostics.SpikeDetector(10.0)
  assert [detector.median_before_spike(x) for x in (1.0, 100.0, NAN)] == [
    None
  ] * 3
  off = diagnostics.SpikeDetector(0.0)
  assert [off.median_before_spike(x) for x in [1.0] * 100 + [1e9]] == [
    None
  ] * 101


def test_rounding_of_a_constant_loss_is_no_spike():
  detector = diagnostics.SpikeDetector(10.0)
  for _ in range(64):
    detector.median_before_spike(1.0)
  assert detector.median_before_spike(1.001) is None
  assert detector.median_before_spike(1.5) == 1.0
