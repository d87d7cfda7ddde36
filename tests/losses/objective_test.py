"""The co-training mix: which terms count, and how much."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calince_jax.losses import calibration
from calince_jax.losses.objective import Objective, co_training_loss
from calince_jax.losses.predictive import predictive_loss

STEP = jnp.int32(1_000)


@pytest.fixture
def outputs(rng):
  def unit(n, d):
    x = rng.normal(size=(n, d))
    return jnp.float32(x / np.linalg.norm(x, axis=1, keepdims=True))

  return {
    "video": unit(8, 16),
    "text": unit(8, 16),
    "logit_scale": jnp.float32(10.0),
    "correspondence": jnp.float32(rng.normal(size=(8, 3))),
    "prediction": {
      "logits": jnp.float32(rng.normal(size=(8, 5, 11))),
      "targets": jnp.int32(rng.integers(11, size=(8, 5))),
      "mask": jnp.asarray(rng.random((8, 5)) < 0.5),
    },
  }


def loss_of(outputs, step=STEP, **choices):
  return co_training_loss(
    Objective(num_negatives=2, **choices),
    outputs,
    calibration.init_histograms(),
    step,
  )


def test_the_loss_is_the_weighted_sum_of_the_terms(outputs):
  loss, aux = loss_of(
    outputs,
    correspondence_weight=0.5,
    contrastive_weight=2.0,
    predictive_weight=3.0,
  )
  m = aux["metrics"]
  expected = (
    0.5 * m["correspondence"] + 2.0 * m["contrastive"] + 3.0 * m["predictive"]
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_methods_differ_in_the_objective_alone(outputs):
  cali, _ = loss_of(outputs, noise_rate=0.4)
  score, _ = loss_of(outputs, confidence="score")
  cotrain, aux = loss_of(outputs, confidence="none")
  infonce, plain = loss_of(
    outputs,
    confidence="none",
    correspondence_weight=0.0,
    predictive_weight=0.0,
  )
  m = aux["metrics"]
  assert "correspondence" not in plain["metrics"]
  np.testing.assert_allclose(infonce, m["contrastive"], rtol=1e-6)
  np.testing.assert_allclose(
    cotrain, m["contrastive"] + m["correspondence"] + m["predictive"], rtol=1e-6
  )
  values = [float(x) for x in (cali, score, cotrain, infonce)]
  assert len({round(value, 4) for value in values}) == 4


def test_calibrated_term_uses_the_posterior_of_the_positive_logit(outputs):
  _, aux = loss_of(outputs, noise_rate=0.4)
  w = np.maximum(0, 1 - 0.4 / (2 * np.exp(outputs["correspondence"][:, 0])))
  np.testing.assert_allclose(aux["confidence"], w, atol=1e-6)
  expected = (w * aux["pair_loss"]).sum() / w.sum()
  np.testing.assert_allclose(aux["metrics"]["contrastive"], expected, rtol=1e-5)


def test_before_the_warm_up_ends_all_pairs_count_alike(outputs):
  choices = {"noise_rate": 0.4, "warmup_steps": 10, "ramp_steps": 10}
  _, early = loss_of(outputs, jnp.int32(5), **choices)
  _, late = loss_of(outputs, jnp.int32(50), **choices)
  np.testing.assert_array_equal(early["confidence"], 1.0)
  assert np.ptp(late["confidence"]) > 0.1


def test_the_contrastive_term_does_not_teach_the_head(outputs):
  def contrastive(logits):
    changed = outputs | {"correspondence": logits}
    return loss_of(changed, noise_rate=0.4)[1]["metrics"]["contrastive"]

  grad = jax.grad(contrastive)(outputs["correspondence"])
  assert not np.any(grad)


def test_weigh_predictive_weighs_the_predictive_term(outputs):
  _, plain = loss_of(outputs, noise_rate=0.4)
  _, weighed = loss_of(outputs, noise_rate=0.4, weigh_predictive=True)
  nats, w = predictive_loss(outputs["prediction"]), weighed["confidence"]
  np.testing.assert_allclose(plain["metrics"]["predictive"], nats.mean())
  np.testing.assert_allclose(
    weighed["metrics"]["predictive"], (nats * w).sum() / w.sum(), rtol=1e-5
  )


def test_what_is_logged(outputs):
  _, aux = loss_of(outputs, noise_rate=0.4)
  m = aux["metrics"]
  np.testing.assert_allclose(m["ln_N"], np.log(8), rtol=1e-6)
  S = outputs["video"] @ outputs["text"].T
  hits = [S[i].argmax() == i for i in range(8)]
  hits += [S[:, i].argmax() == i for i in range(8)]
  np.testing.assert_allclose(m["in_batch_accuracy"], np.mean(hits), rtol=1e-6)
  z = np.asarray(outputs["video"])
  cosines = [z[i] @ z[j] for i in range(8) for j in range(8) if i != j]
  np.testing.assert_allclose(m["video_collapse"], np.mean(cosines), atol=1e-6)
  assert m["confidence_histogram"].sum() == 8
  positive, negative = (
    outputs["correspondence"][:, 0],
    outputs["correspondence"][:, 1:],
  )
  accuracy = np.mean(positive > -np.log(2)) + np.mean(negative < -np.log(2))
  np.testing.assert_allclose(m["balanced_accuracy"], accuracy / 2, rtol=1e-6)


def test_token_loss_equals_plain_loops_in_float64(outputs):
  p = {k: np.asarray(v, np.float64) for k, v in outputs["prediction"].items()}
  expected = []
  for logits, targets, mask in zip(
    p["logits"], p["targets"], p["mask"], strict=True
  ):
    nats = [
      -np.log(np.exp(row[int(target)]) / np.exp(row).sum())
      for row, target, real in zip(logits, targets, mask, strict=True)
      if real
    ]
    expected.append(np.mean(nats) if nats else 0.0)
  np.testing.assert_allclose(
    predictive_loss(outputs["prediction"]), expected, rtol=1e-5
  )


def test_latent_loss_equals_plain_loops_and_teaches_the_prediction_only(
  outputs,
):
  latent = {
    "prediction": outputs["video"],
    "target": outputs["text"],
    "logit_scale": jnp.float32(5.0),
  }
  v, t = (np.asarray(outputs[name], np.float64) for name in ("video", "text"))
  expected = [
    -np.log(np.exp(5 * v[i] @ t[i]) / sum(np.exp(5 * v[i] @ u) for u in t))
    for i in range(8)
  ]
  np.testing.assert_allclose(predictive_loss(latent), expected, rtol=1e-5)
  grads = jax.grad(lambda latent: predictive_loss(latent).sum())(latent)
  assert np.any(grads["prediction"]) and not np.any(grads["target"])


def test_one_pair_is_finite(outputs):
  one = jax.tree.map(lambda x: x[:1] if x.ndim else x, outputs)
  one["correspondence"] = one["correspondence"][:, :1]  # no negatives
  loss, aux = loss_of(one)
  assert np.isfinite(loss)
  np.testing.assert_allclose(aux["metrics"]["infonce"], 0, atol=1e-5)


@pytest.mark.parametrize(
  "wrong, message",
  [
    ({"confidence": "trust"}, "posterior"),
    ({"correspondence_weight": -1.0}, "negative"),
    ({"correspondence_weight": 0.0}, "needs the correspondence head"),
    ({"noise_rate": 1.0}, "noise_rate"),
    ({"floor": 2.0}, "floor"),
    ({"num_negatives": 0}, "num_negatives"),
  ],
)
def test_wrong_choices_are_named(wrong, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(Objective(), **wrong)
