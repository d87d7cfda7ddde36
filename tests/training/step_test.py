"""One step: sharded equals plain, learning, skipping, averaging."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import PLAIN_OBJECTIVE, TINY_MODEL

from calince_jax.runtime import sharding
from calince_jax.training import step as train_step

OBJECTIVE = replace(PLAIN_OBJECTIVE, num_negatives=2, noise_rate=0.3)
SGD = optax.sgd(0.1)  # Adam's first steps are the gradient's sign: too coarse


def batch_of(rng, n=16):
  ids = rng.integers(5, 40, size=(n, 8))
  return {
    "video": jnp.asarray(rng.integers(0, 256, (n, 4, 32, 32, 3)), jnp.uint8),
    "text_ids": jnp.asarray(ids, jnp.int32),
    "text_mask": jnp.asarray(np.arange(8) < rng.integers(3, 9, (n, 1))),
    "pair_index": jnp.arange(n, dtype=jnp.int32),
    "matched": jnp.ones(n, jnp.int8),
  }


def make_step(tx=SGD, objective=OBJECTIVE, model=TINY_MODEL):
  return train_step.make_train_step(model.build(), tx, objective, ema_decay=0.9)


@pytest.fixture(scope="module")
def plain_step():
  """The step of OBJECTIVE on one device, compiled once for all tests."""
  return jax.jit(make_step())


@pytest.fixture(scope="module")
def start():
  return jax.jit(
    lambda: train_step.init_state(TINY_MODEL.build(), SGD, 16, 0)
  )()


@pytest.mark.parametrize("model_parallel, rule", [(1, "fsdp"), (2, "model")])
def test_eight_devices_equal_one(rng, start, plain_step, model_parallel, rule):
  batch = batch_of(rng)
  step = make_step()
  plain, metrics = plain_step(start, batch)
  mesh = sharding.make_mesh(jax.devices(), model_parallel)
  layout = sharding.shardings(start, mesh, [(".*", rule)], smallest=64)
  rows = sharding.batch_sharding(mesh)
  state = jax.device_put(start, layout)
  spread, spread_metrics = jax.jit(
    step, in_shardings=(layout, rows), out_shardings=(layout, None)
  )(state, jax.device_put(batch, rows))
  kernel = spread.params["video_projection"]["kernel"]
  assert not kernel.sharding.is_fully_replicated
  pairs, spread_pairs = metrics.pop("pairs"), spread_metrics.pop("pairs")
  for name in metrics:
    np.testing.assert_allclose(
      metrics[name], spread_metrics[name], rtol=2e-4, atol=1e-5, err_msg=name
    )
  for name in pairs:
    np.testing.assert_allclose(
      pairs[name], spread_pairs[name], rtol=1e-3, atol=1e-3, err_msg=name
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
    plain.params,
    spread.params,
  )


def test_overfits_one_batch(rng, start):
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(3e-3, b1=0.9, b2=0.98, weight_decay=0.0),
  )
  batch = batch_of(rng, 8)
  objective = replace(OBJECTIVE, noise_rate=0.0)
  step = jax.jit(make_step(tx, objective))
  state = start.replace(opt_state=jax.jit(tx.init)(start.params))
  first = None
  for _ in range(60):
    state, metrics = step(state, batch)
    first = metrics if first is None else first
  assert metrics["in_batch_accuracy"] == 1.0
  assert metrics["contrastive"] < 0.3 * first["contrastive"]
  assert metrics["balanced_accuracy"] > 0.9
  assert metrics["predictive"] < 0.7 * first["predictive"]


def test_a_step_that_is_not_finite_changes_nothing(rng, start, plain_step):
  batch, step = batch_of(rng), plain_step
  state, metrics = step(start, batch)
  assert not metrics["skipped"]
  poisoned = state.replace(
    params=jax.tree.map(lambda x: x, state.params)
    | {"log_logit_scale": jnp.float32(jnp.nan)}
  )
  after, metrics = step(poisoned, batch)
  assert metrics["skipped"] and after.bad_steps == 1
  assert metrics["skipped_steps"] == after.skipped_steps == 1
  assert after.step == 2
  for name in ("params", "opt_state", "ema_params", "calibration"):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(after, name),
      getattr(poisoned, name),
    )
  healed, metrics = step(after.replace(params=state.params), batch)
  assert not metrics["skipped"] and healed.bad_steps == 0
  assert healed.skipped_steps == 1


def test_the_pairs_to_blame_are_named(rng, start):
  batch = batch_of(rng)
  ids = np.array(batch["text_ids"])
  ids[ids == 7] = 8
  ids[[2, 11], 0] = 7  # the first token is never masked out
  batch["text_ids"] = jnp.asarray(ids)
  embedding = start.params["text_encoder"]["embedding"]["embedding"]
  params = jax.tree.map(
    lambda leaf: leaf.at[7].set(jnp.nan) if leaf is embedding else leaf,
    start.params,
  )
  # Without prediction: its decoder's softmax has all tokens' embeddings in it.
  objective = replace(OBJECTIVE, predictive_weight=0.0)
  step = jax.jit(make_step(objective=objective))
  _, metrics = step(start.replace(params=params), batch)
  assert metrics["skipped"]
  np.testing.assert_array_equal(
    np.flatnonzero(~np.asarray(metrics["pairs"]["finite"])), [2, 11]
  )
  assert metrics["pairs"]["pair_index"].tolist() == list(range(16))
  _, metrics = step(start, batch)
  assert metrics["pairs"]["finite"].all() and not metrics["skipped"]


def test_the_average_follows_the_parameters(rng, start, plain_step):
  state, _ = plain_step(start, batch_of(rng))
  decay = 1 / 10  # (1 + n) / (10 + n) at n = 0
  name = "video_projection"
  expected = decay * start.params[name]["kernel"]
  expected += (1 - decay) * state.params[name]["kernel"]
  np.testing.assert_allclose(
    state.ema_params[name]["kernel"], expected, rtol=1e-4, atol=1e-6
  )


def test_the_centres_follow_the_batches(rng, start, plain_step):
  model = TINY_MODEL.build()

  def mean(state, batch):
    encoded = model.apply(
      {"params": state.params}, batch["video"], method="encode_video"
    )
    return np.asarray(encoded["projected"].mean(axis=0))

  first, second = batch_of(rng), batch_of(rng)
  state, _ = plain_step(start, first)
  centre, expected = state.params["video_centre"], mean(start, first)
  np.testing.assert_allclose(centre, expected, rtol=1e-3, atol=1e-5)
  expected = (expected + mean(state, second)) / 2
  state, _ = plain_step(state, second)
  centre = state.params["video_centre"]
  np.testing.assert_allclose(centre, expected, rtol=1e-3, atol=1e-5)


def test_randomness_depends_on_the_step(rng, start, plain_step):
  batch, step = batch_of(rng), plain_step
  _, first = step(start, batch)
  _, again = step(start, batch)
  _, other = step(start.replace(step=jnp.int32(1)), batch)
  assert first["loss"] == again["loss"]
  assert first["correspondence"] == other["correspondence"]  # head says 0 yet
  assert first["predictive"] != other["predictive"]  # other masks


def test_unused_heads_are_not_run(rng, start):
  objective = replace(
    PLAIN_OBJECTIVE,
    correspondence_weight=0.0,
    predictive_weight=0.0,
    confidence="none",
    scorer="cosine",
  )
  after, metrics = jax.jit(make_step(objective=objective))(start, batch_of(rng))
  assert "correspondence" not in metrics and "predictive" not in metrics
  for name in ("correspondence_heads_0", "predictive_decoder"):
    jax.tree.map(
      np.testing.assert_array_equal, after.params[name], start.params[name]
    )


def test_a_detached_head_teaches_only_itself(rng, start):
  objective = replace(
    PLAIN_OBJECTIVE,
    contrastive_weight=0.0,
    predictive_weight=0.0,
    confidence="none",
  )
  batch = batch_of(rng)
  moved = {}
  for detached in (False, True):
    model = replace(TINY_MODEL, head_detached=detached)
    step = jax.jit(make_step(objective=objective, model=model))
    state, _ = step(start, batch)  # moves the head's last layer off zero
    state, _ = step(state, batch)
    name = ("video_projection", "kernel")
    before, after = (tree.params[name[0]][name[1]] for tree in (start, state))
    moved[detached] = bool(np.any(before != after))
  assert moved == {False: True, True: False}


def test_duplicate_rate():
  ids = jnp.array([[1, 2], [3, 4], [1, 2], [5, 6], [1, 2]])
  np.testing.assert_allclose(train_step.duplicate_rate(ids), 3 / 5)
  np.testing.assert_allclose(train_step.duplicate_rate(ids[:2]), 0)
