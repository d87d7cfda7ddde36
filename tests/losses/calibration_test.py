"""From logits to confidences, against the closed form and simulated data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calince_jax.losses import calibration


def test_correspondence_loss_equals_plain_loops_in_float64(rng):
  positive, negatives = rng.normal(size=7), rng.normal(size=(7, 3))
  expected = []
  for i in range(7):
    loss = -np.log(1 / (1 + np.exp(-positive[i])))
    for k in range(3):
      loss -= np.log(1 - 1 / (1 + np.exp(-negatives[i, k])))
    expected.append(loss)
  loss = calibration.correspondence_loss(
    jnp.float32(positive), jnp.float32(negatives)
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_correspondence_loss_of_one_pair_without_negatives_is_finite():
  loss = calibration.correspondence_loss(jnp.array([-300.0]), jnp.zeros((1, 0)))
  np.testing.assert_allclose(loss, [300.0])


@pytest.mark.parametrize("K", [1, 4])
def test_base_rate_entropy_is_the_loss_of_the_constant_head(K):
  g = -np.log(K)
  loss = calibration.correspondence_loss(jnp.full((1,), g), jnp.full((1, K), g))
  np.testing.assert_allclose(
    loss[0], calibration.base_rate_entropy(K), rtol=1e-6
  )


@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("eta", [0.0, 0.2, 0.6])
def test_posterior_inverts_the_bayes_optimal_score(K, eta):
  R = np.array([0.0, 0.1, 1.0, 10.0, 1e4])
  a = (1 - eta) * R + eta
  with np.errstate(divide="ignore"):
    g = np.log(a / K)  # the logit of s* = a / (a + K)
  clean = (1 - eta) * R / np.where(a > 0, a, 1)
  clean[a == 0] = 0
  w = calibration.posterior(jnp.float32(g), eta, K)
  # At eta = 0 every pair is clean by assumption, but for s = 0 exactly.
  np.testing.assert_allclose(w[1:], clean[1:], atol=1e-5)


def test_kinds_of_confidence():
  g = jnp.array([-2.0, 0.0, 3.0])
  settings = {"noise_rate": 0.3, "num_negatives": 2}

  def confidence(kind, **more):
    return calibration.confidence(g, kind=kind, **settings, **more)

  np.testing.assert_array_equal(confidence("none"), 1.0)
  np.testing.assert_allclose(
    confidence("score"), 1 / (1 + np.exp(-g)), rtol=1e-6
  )
  posterior = np.clip(1 - 0.3 / (2 * np.exp(g)), 0, 1)
  np.testing.assert_allclose(confidence("posterior"), posterior, rtol=1e-5)
  np.testing.assert_allclose(
    confidence("posterior", floor=0.2, power=2.0),
    0.2 + 0.8 * posterior**2,
    rtol=1e-5,
  )
  with pytest.raises(ValueError, match="posterior"):
    confidence("trust")


def test_confidence_takes_no_gradient():
  def total(g):
    return calibration.confidence(
      g, kind="score", noise_rate=0.0, num_negatives=1
    ).sum()

  assert not np.any(jax.grad(total)(jnp.array([0.5, -1.0])))


def test_warm_up_goes_from_one_to_the_confidence():
  w = [
    float(calibration.warm_up(jnp.float32(0.2), jnp.int32(step), 10, 4))
    for step in range(16)
  ]
  assert w[:10] == [1.0] * 10
  np.testing.assert_allclose(w[10:14], [0.8, 0.6, 0.4, 0.2], rtol=1e-5)
  np.testing.assert_allclose(w[14:], 0.2, rtol=1e-5)


def simulated_logits(rng, eta, n=20_000, K=4, shift=4.0):
  """An ideal head on two normal distributions of log R."""
  clean, random = rng.normal(shift, 1, n), rng.normal(-shift, 1, (n, K))
  wrong = rng.random(n) < eta
  given = np.where(wrong, rng.normal(-shift, 1, n), clean)
  return jnp.float32(given), jnp.float32(random), wrong


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.4, 0.6])
def test_the_noise_rate_is_estimated_from_the_logits(rng, eta):
  given, negatives, _ = simulated_logits(rng, eta)
  histograms = calibration.init_histograms()
  for part in range(10):
    rows = slice(part * 2_000, (part + 1) * 2_000)
    histograms = calibration.update_histograms(
      histograms, given[rows], negatives[rows], decay=0.99
    )
  estimate = float(calibration.estimate_noise_rate(histograms))
  assert abs(estimate - eta) < 0.03


def test_a_head_that_cannot_tell_gives_the_cap(rng):
  same = jnp.float32(rng.normal(size=4_000))
  histograms = calibration.update_histograms(
    calibration.init_histograms(), same, same[:, None], decay=0.9
  )
  cap = calibration.LARGEST_NOISE_RATE
  np.testing.assert_allclose(
    calibration.estimate_noise_rate(histograms), cap, rtol=1e-6
  )
  empty = calibration.estimate_noise_rate(calibration.init_histograms())
  np.testing.assert_allclose(empty, cap, rtol=1e-6)


def test_old_batches_are_forgotten():
  low, high = jnp.full(8, -5.0), jnp.full(8, 5.0)
  histograms = calibration.init_histograms()
  for logits in (low, *[high] * 20):
    histograms = calibration.update_histograms(
      histograms, logits, logits[:, None], decay=0.5
    )
  weights = histograms["given"]
  assert weights[: calibration.HISTOGRAM_BINS // 2].sum() < 1e-3
  np.testing.assert_allclose(weights.sum(), 16, rtol=1e-3)


def test_effective_sample_size():
  size = calibration.effective_sample_size
  np.testing.assert_allclose(size(jnp.ones(8)), 8)
  np.testing.assert_allclose(size(jnp.array([3.0, 0, 0, 0])), 1)
  assert float(size(jnp.zeros(4))) == 0
