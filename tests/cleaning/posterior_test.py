import numpy as np
import pytest

from calince_jax.cleaning import posterior


def draw(eta, b, P=4000, seed=0):
  rng = np.random.default_rng(seed)
  wrong = rng.uniform(size=P) < eta
  x = rng.normal(size=P) + b * ~wrong
  return x, rng.normal(size=(P, 8)), wrong


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.3, 0.5])
def test_noise_rate_and_posterior_of_a_known_mixture(eta):
  x, negatives, wrong = draw(eta, 2.0)
  # Any rising function of the scores gives the same.
  z = posterior.probits(np.exp(x), np.exp(negatives))
  found = posterior.estimate(z, np.arange(len(x)), 0)
  assert abs(found.noise_rate - eta) < 0.05
  assert found.low - 0.01 <= eta <= found.high + 0.01
  for low, high in ((0.0, 0.5), (0.5, 0.9), (0.9, 1.01)):
    part = (found.confidence >= low) & (found.confidence < high)
    if part.sum() > 100:
      right = 1 - wrong[part].mean()
      assert abs(found.confidence[part].mean() - right) < 0.07


def test_scores_that_tell_nothing_give_a_wide_interval():
  x, negatives, _ = draw(0.3, 0.0, P=1000)
  z = posterior.probits(x, negatives)
  found = posterior.estimate(z, np.arange(1000), 0)
  assert found.high > 0.85
  assert found.high - found.low > 0.3


def test_clips_are_resampled_with_all_their_captions():
  x, negatives, _ = draw(0.3, 1.5, P=500)
  z = posterior.probits(x, negatives)
  once = posterior.estimate(z, np.arange(500), 0)
  copies = posterior.estimate(np.tile(z, 4), np.tile(np.arange(500), 4), 0)
  width, same = once.high - once.low, copies.high - copies.low
  assert abs(width - same) < 0.35 * width
