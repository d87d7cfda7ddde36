"""The co-training mix: which terms count, and how much."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PLAIN_OBJECTIVE

from calince_jax.losses import calibration, noise_robust
from calince_jax.losses.calibrated_nce import pair_losses, similarity
from calince_jax.losses.contrastive import LOSSES
from calince_jax.losses.objective import co_training_loss
from calince_jax.losses.predictive import predictive_loss, reduce_prediction

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
    "cosine": jnp.float32(0.1 * rng.normal(size=(8, 3))),
    "correspondence": jnp.float32(rng.normal(size=(8, 3))),
    "held_out": jnp.float32(rng.normal(size=(8, 3))),
    "logit_bias": jnp.float32(-3.0),
    "momentum_video": unit(8, 16),
    "momentum_text": unit(8, 16),
    "prediction": reduce_prediction(tokens(rng)),
  }


def tokens(rng):
  return {
    "logits": jnp.float32(rng.normal(size=(8, 5, 11))),
    "targets": jnp.int32(rng.integers(11, size=(8, 5))),
    "mask": jnp.asarray(rng.random((8, 5)) < 0.5),
  }


BATCH = {
  "pair_index": jnp.arange(8, dtype=jnp.int32),
  "matched": jnp.array([1, 0, 1, 1, 0, 1, 1, -1], jnp.int8),
}


def loss_of(outputs, step=STEP, batch=BATCH, **choices):
  return co_training_loss(
    replace(
      PLAIN_OBJECTIVE,
      **{"num_negatives": 2, "confidence": "posterior"} | choices,
    ),
    outputs,
    batch,
    calibration.init_state(8),
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
    scorer="cosine",
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


def test_calibrated_term_uses_the_posterior_of_the_held_out_logit(outputs):
  _, aux = loss_of(outputs, noise_rate=0.4)
  w = np.maximum(0, 1 - 0.4 / (2 * np.exp(outputs["held_out"][:, 0])))
  np.testing.assert_allclose(aux["pairs"]["weight"], w, atol=1e-6)
  np.testing.assert_allclose(aux["pairs"]["confidence"], w, atol=1e-6)
  l = pair_losses(similarity(outputs["video"], outputs["text"], 10.0))
  expected = (w * l).sum() / w.sum()
  np.testing.assert_allclose(aux["metrics"]["contrastive"], expected, rtol=1e-5)


def test_floor_and_power_shape_the_weight_and_not_the_confidence(outputs):
  _, plain = loss_of(outputs, noise_rate=0.4)
  _, shaped = loss_of(outputs, noise_rate=0.4, floor=0.2, power=2.0)
  w = np.asarray(plain["pairs"]["weight"])
  np.testing.assert_allclose(
    shaped["pairs"]["weight"], 0.2 + 0.8 * w**2, rtol=1e-5
  )
  np.testing.assert_array_equal(shaped["pairs"]["confidence"], w)


def test_the_oracle_trusts_all_pairs_but_known_mismatches(outputs):
  _, aux = loss_of(outputs, confidence="oracle")
  np.testing.assert_array_equal(
    aux["pairs"]["weight"], [1, 0, 1, 1, 0, 1, 1, 1]
  )
  # Its confidence is what the scores say, for it is judged like the others.
  assert np.ptp(aux["pairs"]["confidence"]) < 1


def test_only_the_oracle_sees_the_truth(outputs):
  for confidence in set(calibration.CONFIDENCES) - {"oracle"}:
    losses = {
      float(
        loss_of(
          outputs,
          confidence=confidence,
          batch=BATCH | {"matched": jnp.full(8, matched, jnp.int8)},
        )[0]
      )
      for matched in (0, 1, -1)
    }
    assert len(losses) == 1, confidence


def test_memory_averages_over_visits(outputs):
  objective = replace(
    PLAIN_OBJECTIVE, num_negatives=2, confidence="score", memory=0.9
  )
  state = calibration.init_state(8)
  seen = []
  for sign in (1.0, -1.0):
    changed = outputs | {"held_out": sign * outputs["held_out"]}
    _, aux = co_training_loss(objective, changed, BATCH, state, STEP)
    state = aux["calibration"]
    seen.append(np.asarray(aux["pairs"]["confidence"]))
  first = jax.nn.sigmoid(outputs["held_out"][:, 0])
  np.testing.assert_allclose(seen[0], first, rtol=1e-5)
  np.testing.assert_allclose(seen[1], 0.5, rtol=1e-5)  # s(g) + s(-g) = 1


@pytest.mark.parametrize("kind", LOSSES)
def test_each_contrastive_loss_is_the_one_that_is_named(outputs, kind):
  alone = {
    "correspondence_weight": 0.0,
    "predictive_weight": 0.0,
    "confidence": "none",
    "scorer": "cosine",
  }
  loss, _ = loss_of(outputs, contrastive=kind, **alone)
  plain, _ = loss_of(outputs, **alone)
  assert np.isfinite(loss)
  assert (loss == plain) == (kind == "infonce")
  S = similarity(outputs["video"], outputs["text"], 10.0)
  same = jnp.eye(8, dtype=bool)
  other = similarity(outputs["momentum_video"], outputs["momentum_text"], 10.0)
  expected = {
    "infonce": lambda: pair_losses(S),
    "rince": lambda: noise_robust.rince(S, q=0.1, lam=0.025),
    "gce": lambda: noise_robust.gce(S, q=0.7),
    "mixture": lambda: noise_robust.mixture(S, pi=0.8),
    "albef": lambda: noise_robust.albef(S, other, alpha=0.4),
    "norton": lambda: noise_robust.norton(S, beta=0.3, iterations=50),
    "siglip": lambda: noise_robust.siglip(S - 3.0),
    "mil_nce": lambda: noise_robust.mil_nce(S, same, variant="paper"),
    "mil_nce_released": lambda: noise_robust.mil_nce(
      S, same, variant="released"
    ),
  }[kind]()
  np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)


def test_mil_nce_takes_a_duplicate_pair_as_positive(outputs):
  twice = BATCH | {"pair_index": jnp.array([0, 0, 2, 3, 4, 5, 6, 7])}
  once, _ = loss_of(outputs, contrastive="mil_nce")
  again, _ = loss_of(outputs, contrastive="mil_nce", batch=twice)
  assert once != again


def test_albefs_alpha_is_blended_in(outputs):
  choices = {"confidence": "none", "warmup_share": 0.01, "ramp_share": 0.01}
  early, _ = loss_of(outputs, jnp.int32(5), contrastive="albef", **choices)
  plain, _ = loss_of(outputs, jnp.int32(5), **choices)
  np.testing.assert_allclose(early, plain, rtol=1e-6)


def test_before_the_warm_up_ends_all_pairs_count_alike(outputs):
  choices = {"noise_rate": 0.4, "warmup_share": 0.01, "ramp_share": 0.01}
  _, early = loss_of(outputs, jnp.int32(5), **choices)
  _, late = loss_of(outputs, jnp.int32(50), **choices)
  np.testing.assert_array_equal(early["pairs"]["weight"], 1.0)
  assert np.ptp(early["pairs"]["confidence"]) > 0.1
  assert np.ptp(late["pairs"]["weight"]) > 0.1


@pytest.mark.parametrize("confidence", ["posterior", "density_ratio", "score"])
def test_the_contrastive_term_does_not_teach_the_head(outputs, confidence):
  def contrastive(logits):
    changed = outputs | {"correspondence": logits, "held_out": logits}
    return loss_of(changed, noise_rate=0.4, confidence=confidence)[1][
      "metrics"
    ]["contrastive"]

  grad = jax.grad(contrastive)(outputs["correspondence"])
  assert not np.any(grad)


def test_weigh_predictive_weighs_the_predictive_term(outputs):
  _, plain = loss_of(outputs, noise_rate=0.4, weigh_predictive=False)
  _, weighed = loss_of(outputs, noise_rate=0.4, weigh_predictive=True)
  nats, w = predictive_loss(outputs["prediction"]), weighed["pairs"]["weight"]
  np.testing.assert_allclose(plain["metrics"]["predictive"], nats.mean())
  np.testing.assert_allclose(
    weighed["metrics"]["predictive"], (nats * w).sum() / w.sum(), rtol=1e-5
  )


def test_metrics(outputs):
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


def test_token_loss_equals_plain_loops_in_float64(rng):
  prediction = tokens(rng)
  p = {k: np.asarray(v, np.float64) for k, v in prediction.items()}
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
    predictive_loss(reduce_prediction(prediction)), expected, rtol=1e-5
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
  for name in ("cosine", "correspondence", "held_out"):
    one[name] = one[name][:, :1]  # no negatives
  batch = jax.tree.map(lambda x: x[:1], BATCH)
  loss, aux = jax.jit(
    lambda one: loss_of(one, batch=batch, confidence="density_ratio")
  )(one)
  assert np.isfinite(loss)
  np.testing.assert_allclose(aux["metrics"]["infonce"], 0, atol=1e-5)


@pytest.mark.parametrize(
  "wrong, message",
  [
    ({"confidence": "trust"}, "posterior"),
    (
      {"correspondence_weight": -1.0},
      "weight=-1.0 must be a number, at least 0",
    ),
    ({"correspondence_weight": 0.0}, "needs the correspondence head"),
    ({"contrastive": "triplet"}, "rince"),
    ({"scorer": "logit"}, "cosine"),
    ({"memory": 1.5}, "memory"),
    ({"noise_rate": 1.0}, "noise_rate"),
    ({"floor": 2.0}, "floor"),
    ({"num_negatives": 0}, "num_negatives"),
  ],
)
def test_wrong_choices_are_named(wrong, message):
  with pytest.raises(ValueError, match=message):
    replace(PLAIN_OBJECTIVE, **wrong)
