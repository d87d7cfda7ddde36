"""From logits to confidences, against the closed form and simulated data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calince_jax.losses import calibration, density_ratio


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
  w = calibration.logit_posterior(jnp.float32(g), eta, K)
  # At eta = 0 every pair is clean by assumption, but for s = 0 exactly.
  np.testing.assert_allclose(w[1:], clean[1:], atol=1e-5)


def scores_of(rng, n=64, K=4):
  """Scores of 64 given pairs, the last 16 of them wrong, and K negatives."""
  clean = np.r_[np.full(n - 16, 4.0), np.zeros(16)]
  return {
    name: jnp.float32(
      scale * (rng.normal(size=(n, 1 + K)) + np.c_[clean, np.zeros((n, K))])
    )
    for name, scale in (("head", 2.0), ("cosine", 0.1))
  }


def observed(scores, scorer="both"):
  return calibration.update_statistics(
    calibration.init_state(64), scores, scorer=scorer, decay=0.9
  )


@pytest.mark.parametrize("scorer", calibration.SCORERS)
def test_alignment_scores_are_standardised_by_the_negatives(rng, scorer):
  scores = scores_of(rng)
  _, x = observed(scores, scorer)

  def z(values):
    values = np.asarray(values, np.float64)
    return (values[:, 0] - values[:, 1:].mean()) / values[:, 1:].std()

  expected = {name: z(values) for name, values in scores.items()}
  expected["both"] = (expected["head"] + expected["cosine"]) / np.sqrt(2)
  np.testing.assert_allclose(x, expected[scorer], rtol=1e-4, atol=1e-4)


def test_kinds_of_confidence(rng):
  scores = scores_of(rng)
  state, x = observed(scores)
  matched = jnp.array([1, 0, -1] + [1] * 61, jnp.int8)

  def confidence(kind):
    return np.asarray(
      calibration.confidence(
        kind,
        state,
        x=x,
        raw_scores=scores,
        matched=matched,
        noise_rate=0.3,
        num_negatives=2,
      )
    )

  g = scores["head"][:, 0]
  np.testing.assert_array_equal(confidence("none"), 1.0)
  np.testing.assert_allclose(confidence("score"), jax.nn.sigmoid(g), rtol=1e-6)
  np.testing.assert_allclose(
    confidence("posterior"), np.clip(1 - 0.3 / (2 * np.exp(g)), 0, 1), atol=1e-5
  )
  np.testing.assert_array_equal(confidence("oracle")[:4], [1, 0, 1, 1])
  np.testing.assert_array_equal(
    confidence("density_ratio"),
    density_ratio.matched_posterior(state["histograms"], 0.3, x),
  )
  ratio = confidence("density_ratio")
  assert ratio[:48].mean() > 0.9 and ratio[48:].mean() < 0.4
  xid = confidence("robust_xid")
  assert 0.25 <= xid.min() < xid.max() <= 1
  # Half-way where the cosine is the running mean of given pairs' cosines.
  nearest = np.abs(scores["cosine"][:, 0] - scores["cosine"][:, 0].mean())
  assert abs(xid[nearest.argmin()] - 0.625) < 0.05
  with pytest.raises(ValueError, match="posterior"):
    confidence("trust")


@pytest.mark.parametrize("kind", calibration.CONFIDENCES)
def test_confidence_takes_no_gradient(rng, kind):
  scores = scores_of(rng)

  def total(scores):
    state, x = observed(scores)
    return calibration.confidence(
      kind,
      state,
      x=x,
      raw_scores=scores,
      matched=jnp.ones(64, jnp.int8),
      noise_rate=0.2,
      num_negatives=4,
    ).sum()

  grads = jax.grad(total)(scores)
  assert not any(np.any(grad) for grad in jax.tree.leaves(grads))


def test_inference_gives_the_same_confidence(rng):
  scores = scores_of(rng)
  state, x = observed(scores)
  frozen = calibration.inference_calibration(
    state, scorer="both", noise_rate=None
  )
  assert json.loads(json.dumps(frozen)) == frozen
  again, p = calibration.inference_confidence(frozen, scores)
  np.testing.assert_allclose(again[:, 0], x, rtol=1e-4, atol=1e-4)
  eta = density_ratio.estimate_noise_rate(state["histograms"])
  expected = density_ratio.matched_posterior(state["histograms"], eta, x)
  np.testing.assert_allclose(p[:, 0], expected, atol=1e-3)
  assert frozen["noise_rate"] == eta
  given = calibration.inference_calibration(
    state, scorer="both", noise_rate=0.1
  )
  assert given["noise_rate"] == 0.1
  assert np.mean(given["posterior"]) > np.mean(frozen["posterior"])


def test_the_memory_averages_the_confidence_of_each_pair():
  memory = calibration.init_state(5)["memory"]
  visits = ([1, 3], [0.2, 1.0]), ([3, 0], [0.5, 0.6]), ([3, 4], [0.0, 1.0])
  for index, confidence in visits:
    memory, average = calibration.update_memory(
      memory, jnp.array(index), jnp.array(confidence), decay=0.75
    )
  # Pair 3: a plain mean of its first visits, 1 / (1 - decay) = 4 of them.
  np.testing.assert_allclose(average, [(1.0 + 0.5 + 0.0) / 3, 1.0], rtol=1e-6)
  np.testing.assert_allclose(memory["confidence"], [0.6, 0.2, 0, 0.5, 1.0])
  np.testing.assert_array_equal(memory["visits"], [1, 1, 0, 3, 1])
  for _ in range(50):
    memory, average = calibration.update_memory(
      memory, jnp.array([3]), jnp.array([1.0]), decay=0.75
    )
  np.testing.assert_allclose(average, 1.0, atol=1e-5)


def test_warmup_goes_from_one_to_the_weight():
  w = [
    float(calibration.warmup_weight(jnp.float32(0.2), jnp.int32(step), 10, 4))
    for step in range(16)
  ]
  assert w[:10] == [1.0] * 10
  np.testing.assert_allclose(w[10:14], [0.8, 0.6, 0.4, 0.2], rtol=1e-5)
  np.testing.assert_allclose(w[14:], 0.2, rtol=1e-5)


def test_effective_sample_size():
  size = calibration.effective_sample_size
  np.testing.assert_allclose(size(jnp.ones(8)), 8)
  np.testing.assert_allclose(size(jnp.array([3.0, 0, 0, 0])), 1)
  assert float(size(jnp.zeros(4))) == 0
