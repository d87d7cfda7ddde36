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


# ------------------------------------------------------------ earned weights


def observed(rng, eta, shift, n=2560, learned=0.0):
  """Histograms of n given pairs, a share eta like the negatives; and x."""
  mismatched = np.arange(n) < eta * n
  x = rng.normal(size=n) + np.where(mismatched, learned, shift)
  histograms = density_ratio.update_histograms(
    density_ratio.init_histograms(),
    jnp.float32(x),
    jnp.float32(rng.normal(size=4 * n)),
    0.0,
  )
  return histograms, jnp.float32(x), mismatched


noise_rate_interval = jax.jit(density_ratio.noise_rate_interval)


def earned(histograms, x, **changes):
  settings = {"noise_rate": None, "largest_power": 5.0} | changes
  return density_ratio.earned_weights(histograms, x, **settings)


def effective_share(w):
  return float(w.sum() ** 2 / (w**2).sum() / len(w))


def test_without_evidence_every_weight_is_exactly_one(rng):
  x = jnp.float32(rng.normal(size=64))
  w, metrics = earned(density_ratio.init_histograms(), x)
  np.testing.assert_array_equal(w, 1.0)
  assert metrics["trust"] == 0
  # Scores that tell nothing, few or many, whatever they look like.
  for seed in range(40):
    for n in (16, 128, 2560):
      noise = np.random.default_rng(seed)
      histograms, x, _ = observed(noise, 0.4, 0.0, n)
      w, _ = earned(histograms, x)
      np.testing.assert_array_equal(w, 1.0, err_msg=f"seed {seed}, {n} pairs")


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.4, 0.6])
def test_separated_scores_earn_the_posterior(rng, eta):
  histograms, x, mismatched = observed(rng, eta, 8.0)
  w, metrics = earned(histograms, x)
  assert metrics["trust"] == 1
  assert w[~mismatched].mean() > 0.99
  assert not eta or w[mismatched].mean() < 0.02
  low, high = metrics["noise_rate_low"], metrics["noise_rate_high"]
  assert low <= eta + 1e-3 <= high + 1e-3


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.4, 0.6])
@pytest.mark.parametrize("shift", [0.3, 0.6, 1.0, 1.6, 2.5])
def test_the_effective_share_has_a_floor(rng, eta, shift):
  """By construction: not one to three pairs of a batch, as a fixed power."""
  histograms, x, mismatched = observed(rng, eta, shift)
  w, metrics = earned(histograms, x)
  upper = max(float(metrics["noise_rate_high"]), eta)
  assert effective_share(w) > 0.9 * (1 - upper)
  # And what evidence there is is used the right way round.
  if eta and metrics["trust"]:
    assert w[~mismatched].mean() > w[mismatched].mean()


def test_trust_grows_with_the_evidence(rng):
  trust = [
    float(earned(*observed(rng, 0.4, shift)[:2])[1]["trust"])
    for shift in (0.0, 0.3, 0.6, 1.0, 2.0)
  ]
  assert trust == sorted(trust) and trust[0] == 0 and trust[-1] == 1
  few, many = (
    float(earned(*observed(rng, 0.4, 0.8, n)[:2])[1]["trust"])
    for n in (64, 4096)
  )
  assert few < many


def test_a_known_noise_rate_is_used(rng):
  histograms, x, mismatched = observed(rng, 0.4, 3.0)
  none, _ = earned(histograms, x, noise_rate=0.0)
  np.testing.assert_allclose(none, 1.0, atol=1e-6)
  known, _ = earned(histograms, x, noise_rate=0.4)
  assert known[mismatched].mean() < 0.1


@pytest.mark.parametrize("learned", [0.0, 0.2])
@pytest.mark.parametrize("shift", [1.5, 2.5, 4.0])
@pytest.mark.parametrize("eta", [0.0, 0.2, 0.4, 0.6])
def test_the_interval_covers_the_noise_rate(eta, shift, learned):
  """Also where pairs overlap, and where mismatched ones were learned a bit."""
  covered = []
  for seed in range(10):
    rng = np.random.default_rng(seed)
    histograms, _, _ = observed(rng, eta, shift, 2560, learned)
    low, high = noise_rate_interval(histograms)
    covered.append(low <= eta <= high)
  assert np.mean(covered) >= 0.9


def test_the_interval_says_when_nothing_is_known(rng):
  histograms, _, _ = observed(rng, 0.4, 0.0)
  low, high = noise_rate_interval(histograms)
  assert low == 0
  np.testing.assert_allclose(high, density_ratio.LARGEST_NOISE_RATE)


def test_the_interval_narrows_where_scores_are_apart(rng):
  widths = []
  for shift in (1.0, 2.5, 6.0):
    low, high = noise_rate_interval(observed(rng, 0.4, shift)[0])
    widths.append(float(high - low))
  assert widths == sorted(widths, reverse=True) and widths[-1] < 0.2
