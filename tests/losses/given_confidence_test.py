"""Confidences known before training, combined with what training learns."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PLAIN_OBJECTIVE
from scipy.stats import norm

from calince_jax.losses import calibration, density_ratio, given_confidence
from calince_jax.losses.objective import co_training_loss

N = 8
GIVEN = jnp.float32([0.0, 0.013, 0.1, 0.3, 0.5, 0.77, 0.9, 1.0])


def histograms_of(rng, eta=0.4, shift=4.0, n=40_000):
  wrong = rng.random(n) < eta
  given = np.where(wrong, rng.normal(size=n), rng.normal(shift, 1.5, n))
  return density_ratio.update_histograms(
    density_ratio.init_histograms(),
    jnp.float32(given),
    jnp.float32(rng.normal(size=4 * n)),
    0.0,
  )


def combine(histograms, x, given=GIVEN, **changes):
  settings = {"noise_rate": None, "largest_power": 5.0, "trust": None}
  return given_confidence.combine(histograms, x, given, **settings | changes)


def test_the_table_is_the_prior_and_the_score_the_evidence(rng):
  eta = 0.4
  histograms = histograms_of(rng, eta)
  trusted = {"trust": jnp.float32(1.0), "noise_rate": eta}
  seen = np.linspace(-1, 5, 40)  # where there is something to count
  for q in (0.1, 0.6, 0.95):
    P, _, _ = combine(
      histograms, jnp.float32(seen), jnp.full(40, q, jnp.float32), **trusted
    )
    right, wrong = q * norm.pdf(seen, 4.0, 1.5), (1 - q) * norm.pdf(seen)
    error = np.abs(np.asarray(P) - right / (right + wrong))
    assert error.max() < 0.15 and error.mean() < 0.03
    half, _, _ = combine(
      histograms,
      jnp.float32(seen),
      jnp.full(40, q, jnp.float32),
      **trusted | {"trust": jnp.float32(0.5)},
    )
    L = np.exp(
      given_confidence.log_likelihood_ratio(histograms, eta, jnp.float32(seen))
    ).astype(np.float64)
    expected = [q * l**0.5 / (q * l**0.5 + 1 - q) for l in L]
    np.testing.assert_allclose(half, expected, rtol=1e-5)


def test_with_the_shared_prior_it_is_the_posterior_of_training(rng):
  histograms, eta = histograms_of(rng), 0.4
  x = density_ratio.bin_centres()
  P, _, _ = combine(
    histograms,
    x,
    jnp.full(len(x), 1 - eta, jnp.float32),
    noise_rate=eta,
    trust=jnp.float32(1.0),
  )
  plain = density_ratio.matched_posterior(histograms, eta, x)
  e = float(density_ratio.sampling_error(histograms))
  assert np.abs(P - plain).max() < 2 * e
  middle = (plain > 0.05) & (plain < 0.95)
  assert middle.sum() > 5
  np.testing.assert_allclose(P[middle], plain[middle], atol=0.01)


def test_evidence_moves_certainties_too(rng):
  histograms = histograms_of(rng)
  low, power, metrics = combine(histograms, jnp.full(N, -1.0))
  high, _, _ = combine(histograms, jnp.full(N, 6.0))
  assert metrics["trust"] == 1.0 and power == max(1, metrics["sharpness"])
  assert np.all(low[2:] < 0.7 * GIVEN[2:])
  assert np.all(high[:-1] > GIVEN[:-1]) and np.all(high[2:] > 0.9)
  for P in (low, high):
    assert np.all(np.diff(P) >= 0)
    assert P[0] == P[1] and P[-1] < 1


@pytest.mark.parametrize("eta", [0.0, 0.99])
def test_extreme_rates_and_scores_give_no_nan(rng, eta):
  x = jnp.float32([-100, -6, -3, 0, 3, 9, 18, 100])
  P, _, _ = combine(histograms_of(rng), x, noise_rate=eta)
  assert np.all((P >= 0) & (P <= 1))


def test_few_pairs_say_little(rng):
  x = jnp.float32([-6.0, 18.0])
  for n in (0, 100, 40_000):
    histograms = histograms_of(rng, n=n)
    e = np.sqrt(np.log(40) / (2 * max(n, 1)))
    log_L = given_confidence.log_likelihood_ratio(histograms, 0.4, x)
    limit = np.log(max(1 / e, 1))
    np.testing.assert_allclose(log_L, [-limit, limit], rtol=1e-5, atol=1e-7)


# --------------------------------------------------------- in the objective


def pairs_of(rng, state, *, step=0, cosine=((0.1, 0.3, -0.2),) * N, **choices):
  def unit():
    z = rng.normal(size=(N, 16))
    return jnp.float32(z / np.linalg.norm(z, axis=1, keepdims=True))

  outputs = {
    "video": unit(),
    "text": unit(),
    "logit_scale": jnp.float32(10.0),
    "cosine": jnp.float32(cosine),
  }
  plain = replace(
    PLAIN_OBJECTIVE,
    confidence="given",
    scorer="cosine",
    correspondence_weight=0.0,
    predictive_weight=0.0,
    num_negatives=2,
    trust="evidence",
    power=5.0,
  )
  batch = {
    "pair_index": jnp.arange(N, dtype=jnp.int32),
    "matched": jnp.full(N, -1, jnp.int8),
    "given_confidence": GIVEN,
  }
  loss, aux = co_training_loss(
    replace(plain, **choices), outputs, batch, state, jnp.int32(step)
  )
  assert np.isfinite(loss)
  return aux["pairs"]


def test_without_evidence_the_weights_are_the_tables(rng):
  fresh = calibration.init_state()
  for choices in (
    {},
    {"trust": "schedule", "warmup_share": 0.5},
    {"trust": "schedule", "warmup_share": 0.5, "power": 0.0},
  ):
    pairs = pairs_of(rng, fresh, **choices)
    np.testing.assert_array_equal(pairs["weight"], GIVEN)
    np.testing.assert_array_equal(pairs["confidence"], GIVEN)
  floored = pairs_of(rng, fresh, floor=0.5)["weight"]
  np.testing.assert_allclose(floored, 0.5 + 0.5 * GIVEN, rtol=1e-6)


@pytest.mark.parametrize("trust", ["evidence", "schedule"])
def test_with_evidence_the_weights_follow_both(rng, trust):
  state = calibration.init_state()
  state = state | {"histograms": histograms_of(rng)}
  negatives = np.sqrt(1.5) * np.array([[-1.0, 1.0]])
  cosine = np.concatenate(
    [np.array([-1.0, 6.0] * (N // 2))[:, None], np.repeat(negatives, N, 0)], 1
  )
  pairs = pairs_of(rng, state, step=999, cosine=cosine, trust=trust)
  P, w = np.asarray(pairs["confidence"]), np.asarray(pairs["weight"])
  given = np.asarray(GIVEN)
  assert np.all(P[2:-1:2] < given[2:-1:2]) and np.all(P[1:-1:2] > given[1:-1:2])
  assert np.all(w <= P) and np.any(w[2:-1:2] < 0.9 * P[2:-1:2])
