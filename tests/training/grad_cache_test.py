"""Encoded in chunks, a batch has the gradient of the whole batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import PLAIN_OBJECTIVE, TINY_MODEL, fresh_state
from step_test import batch_of

from calince_jax.losses.calibrated_nce import calibrated_nce
from calince_jax.runtime import sharding
from calince_jax.training import step as train_step
from calince_jax.training.grad_cache import encode_in_chunks

SGD = optax.sgd(0.1)


def make_step(model, objective, num_chunks, mesh=None):
  return train_step.make_train_step(
    model.build(),
    SGD,
    objective,
    ema_decay=0.9,
    grad_cache_chunks=num_chunks,
    mesh=mesh,
  )


def assert_same_step(found, expected):
  (state, metrics), (whole_state, whole_metrics) = found, expected
  for name in ("loss", "contrastive", "correspondence", "predictive"):
    np.testing.assert_allclose(
      metrics[name], whole_metrics[name], rtol=1e-5, err_msg=name
    )
  np.testing.assert_allclose(
    metrics["grad_norm"], whole_metrics["grad_norm"], rtol=1e-4
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
    state.params,
    whole_state.params,
  )


@pytest.mark.parametrize(
  "model, objective",
  [
    ({}, {}),
    (
      {"predictive_task": "caption", "head": "fusion"},
      {"contrastive": "albef", "confidence": "none"},
    ),
  ],
  ids=["masked_text", "caption-fusion-albef"],
)
def test_a_step_in_chunks_equals_a_step_of_the_whole(rng, model, objective):
  model = dataclasses.replace(TINY_MODEL, **model)
  objective = dataclasses.replace(PLAIN_OBJECTIVE, num_negatives=2, **objective)
  batch = batch_of(rng)
  state = fresh_state(model, SGD)
  before = jax.tree.leaves(state.params)
  expected = jax.jit(make_step(model, objective, 1))(state, batch)
  assert any(
    np.any(a != b)
    for a, b in zip(before, jax.tree.leaves(expected[0].params), strict=True)
  )
  chunked = jax.jit(make_step(model, objective, 4))(state, batch)
  assert_same_step(chunked, expected)


def test_eight_devices_in_chunks_equal_one_device(rng):
  objective = dataclasses.replace(PLAIN_OBJECTIVE, num_negatives=2, memory=0.5)
  model = dataclasses.replace(
    TINY_MODEL, predictive_task="latent", head="bilinear"
  )
  batch = batch_of(rng)
  state = fresh_state(model, SGD)
  expected = jax.jit(make_step(model, objective, 1))(state, batch)
  mesh = sharding.make_mesh(jax.devices())
  chunked = make_step(model, objective, 2, mesh)
  layout = sharding.shardings(state, mesh, [(".*", "fsdp")], smallest=64)
  rows = sharding.batch_sharding(mesh)
  found = jax.jit(chunked, in_shardings=(layout, rows))(
    jax.device_put(state, layout), jax.device_put(batch, rows)
  )
  assert_same_step(found, expected)


def encode(params, batch, key):
  """A little tower with dropout."""
  x = jnp.tanh(batch["x"] @ params["w"])
  x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2.0 * x, 0.0)
  z = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  return {"z": z, "c": jnp.float32(3.0)}


def loss_of(encode_all, params, batch, key):
  z = encode_all(functools.partial(encode, params), batch, key)
  assert z["c"].shape == ()
  return calibrated_nce(z["z"], batch["y"], jnp.ones(len(batch["y"])), z["c"])


def test_dropout_is_the_same_forward_and_backward(rng):
  params = {"w": jnp.float32(rng.normal(size=(4, 16)))}
  batch = {
    "x": jnp.float32(rng.normal(size=(12, 4))),
    "y": jnp.float32(rng.normal(size=(12, 16))),
  }
  key = jax.random.key(1)

  def one_by_one(encode, batch, key):  # nothing is computed again
    outputs = [
      encode(
        jax.tree.map(lambda x, k=k: x[4 * k : 4 * k + 4], batch),
        jax.random.fold_in(key, k),
      )
      for k in range(3)
    ]
    z = jnp.concatenate([output["z"] for output in outputs])
    return {"z": z, "c": outputs[0]["c"]}

  in_chunks = functools.partial(encode_in_chunks, num_chunks=3, mesh=None)
  (loss, grads), (expected, expected_grads) = (
    jax.value_and_grad(functools.partial(loss_of, how))(params, batch, key)
    for how in (in_chunks, one_by_one)
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  np.testing.assert_allclose(grads["w"], expected_grads["w"], rtol=1e-5)
  other, _ = jax.value_and_grad(functools.partial(loss_of, in_chunks))(
    params, batch, jax.random.key(2)
  )
  assert other != loss


def test_more_chunks_need_less_memory():
  def temporary(num_chunks):
    def loss(params, batch):
      return loss_of(
        functools.partial(encode_in_chunks, num_chunks=num_chunks, mesh=None),
        params,
        batch,
        jax.random.key(0),
      )

    params = {"w": jnp.ones((64, 512))}
    batch = {"x": jnp.ones((256, 64)), "y": jnp.ones((256, 512))}
    compiled = jax.jit(jax.grad(loss)).lower(params, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # The embeddings and their gradients stay whole.
  assert temporary(8) < 0.75 * temporary(1)


def test_chunks_that_do_not_divide_the_batch_are_an_error():
  for num_chunks, mesh in ((5, None), (3, sharding.make_mesh(jax.devices()))):
    with pytest.raises(ValueError, match=f"into {num_chunks} equal chunks"):
      encode_in_chunks(
        lambda batch, key: batch,
        jnp.ones((16, 2)),
        jax.random.key(0),
        num_chunks=num_chunks,
        mesh=mesh,
      )
