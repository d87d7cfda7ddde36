"""Noise rate and posterior, from mixtures of known densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression

from calince_jax.losses import density_ratio


def simulated_scores(rng, eta, *, n=40_000, K=4, shift=4.0):
  """Standardised scores of given pairs, of negatives, and the truth."""
  wrong = rng.random(n) < eta
  given = np.where(wrong, rng.normal(size=n), rng.normal(shift, 1.5, n))
  return jnp.float32(given), jnp.float32(rng.normal(size=(n, K))), wrong


def histograms_of(given, negatives, parts=10, decay=0.99):
  histograms = density_ratio.init_histograms()
  for g, n in zip(
    jnp.split(given, parts), jnp.split(negatives, parts), strict=True
  ):
    histograms = density_ratio.update_histograms(histograms, g, n, decay)
  return histograms


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.4, 0.6])
@pytest.mark.parametrize("shift", [2.5, 6.0])
def test_the_noise_rate_is_estimated(rng, eta, shift):
  given, negatives, _ = simulated_scores(rng, eta, shift=shift)
  histograms = histograms_of(given, negatives)
  estimate = float(density_ratio.estimate_noise_rate(histograms))
  # It is a bound from above: some clean pairs score low, too.
  t = norm.ppf(density_ratio.SMALLEST_TAIL)
  bound = eta + (1 - eta) * norm.cdf(t, shift, 1.5) / norm.cdf(t)
  assert abs(estimate - bound) < 0.02


@pytest.mark.parametrize("eta", [0.2, 0.4, 0.6])
def test_the_posterior_is_that_of_bayes(rng, eta):
  given, negatives, _ = simulated_scores(rng, eta)
  x = np.linspace(-3, 9, 200)
  wrong, clean = eta * norm.pdf(x), (1 - eta) * norm.pdf(x, 4.0, 1.5)
  bayes = clean / (clean + wrong)
  # Where there is something to count, and clean pairs do not thin out again
  # (the wider density overtakes the narrow one far to the left).
  seen = x > -1
  w = density_ratio.matched_posterior(
    histograms_of(given, negatives), eta, jnp.float32(x)
  )
  assert np.abs(np.asarray(w) - bayes)[seen].max() < 0.08
  assert np.abs(np.asarray(w) - bayes)[seen].mean() < 0.01


def test_the_posterior_does_not_depend_on_the_scale_of_the_score(rng):
  given, negatives, wrong = simulated_scores(rng, 0.4)

  def posterior(stretch):
    g, n = stretch(given), stretch(negatives)
    return np.asarray(
      density_ratio.matched_posterior(histograms_of(g, n), 0.4, g)
    )

  plain = posterior(lambda x: x)
  bent = posterior(lambda x: x + 0.02 * x**2 * jnp.sign(x))
  assert np.abs(plain - bent).mean() < 0.01
  for w in (plain, bent):  # calibrated: the mean says how many are clean
    assert abs(w.mean() - (1 - wrong.mean())) < 0.01


def test_the_ratio_is_an_isotonic_regression(rng):
  given, negatives, _ = simulated_scores(rng, 0.4, n=2_000)
  histograms = histograms_of(given, negatives)
  g, n = (np.asarray(histograms[k], float) for k in ("given", "negative"))
  g, n = g / g.sum(), n / n.sum()
  kept = g > 0
  regression = IsotonicRegression(increasing=False).fit(
    np.flatnonzero(kept), n[kept] / g[kept], sample_weight=g[kept]
  )
  r = np.asarray(density_ratio.ratio(histograms))
  assert (np.diff(r) <= 1e-5).all()
  # sklearn drops bins without given pairs, we pool them with their neighbours:
  # equal where both halves of a bin's neighbourhood are filled.
  inner = slice(45, 60)
  assert kept[inner].all()
  np.testing.assert_allclose(
    r[inner], regression.predict(np.arange(len(g)))[inner], rtol=0.01, atol=1e-5
  )


def test_scores_without_information_give_equal_confidences(rng):
  same = jnp.float32(rng.normal(size=4_000))
  histograms = histograms_of(same, same[:, None])
  cap = density_ratio.LARGEST_NOISE_RATE
  np.testing.assert_allclose(
    density_ratio.estimate_noise_rate(histograms), cap, rtol=1e-6
  )
  w = np.asarray(density_ratio.matched_posterior(histograms, cap, same))
  assert np.ptp(w) < 1e-3


def test_empty_histograms_give_no_nan():
  empty = density_ratio.init_histograms()
  w = density_ratio.matched_posterior(empty, 0.5, jnp.array([-1e9, 0.0, 1e9]))
  np.testing.assert_allclose(w, 0.5, atol=1e-6)
  assert float(density_ratio.estimate_noise_rate(empty)) == np.float32(
    density_ratio.LARGEST_NOISE_RATE
  )


def test_older_batches_count_less():
  histograms = density_ratio.init_histograms()
  for scores in (jnp.array([0.0, 0.0]), jnp.array([5.0, 5.0])):
    histograms = density_ratio.update_histograms(
      histograms, scores, scores[:, None], decay=0.5
    )
  counts = histograms["given"]
  assert counts.sum() == 3.0
  assert set(np.asarray(counts[counts > 0])) == {1.0, 2.0}


def test_no_gradient_flows():
  def total(x):
    histograms = density_ratio.update_histograms(
      density_ratio.init_histograms(), x, x[:, None], 0.9
    )
    return density_ratio.matched_posterior(histograms, 0.3, x).sum()

  assert not np.any(jax.grad(total)(jnp.array([0.5, -1.0, 2.0])))
