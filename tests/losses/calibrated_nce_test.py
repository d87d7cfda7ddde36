"""The equation against plain loops in float64, and its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calince_jax.losses.calibrated_nce import calibrated_nce
from calince_jax.runtime.sharding import make_mesh


def unit(rng, n, d):
  x = rng.normal(size=(n, d))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def reference(video, text, confidence, logit_scale):
  """The equation in float64, one exp at a time."""
  n = len(video)
  S = [
    [logit_scale * float(np.dot(video[i], text[j])) for j in range(n)]
    for i in range(n)
  ]

  def log_sum_exp(values):
    top = max(values)
    return top + np.log(sum(np.exp(value - top) for value in values))

  total = weight = 0.0
  for i in range(n):
    row = log_sum_exp([S[i][j] for j in range(n)])
    column = log_sum_exp([S[j][i] for j in range(n)])
    total += confidence[i] * (0.5 * (row + column) - S[i][i])
    weight += confidence[i]
  return total / weight


nce = jax.jit(calibrated_nce)
nce_and_grads = jax.jit(jax.value_and_grad(calibrated_nce, argnums=(0, 1, 3)))


@pytest.mark.parametrize("n, d", [(1, 4), (2, 3), (7, 16), (33, 8)])
def test_equals_plain_loops_in_float64(rng, n, d):
  for scale in (1.0, 14.3, 200.0):
    video, text = unit(rng, n, d), unit(rng, n, d)
    confidence = rng.random(n) + 0.01
    expected = reference(video, text, confidence, scale)
    loss = nce(*map(jnp.float32, (video, text, confidence)), scale)
    np.testing.assert_allclose(
      loss, expected, rtol=2e-5, atol=2e-5, err_msg=f"{scale=}"
    )


def test_gradients_equal_finite_differences_in_float64(rng):
  n, d, scale, h = 5, 4, 14.3, 1e-6
  video, text = unit(rng, n, d), unit(rng, n, d)
  confidence = rng.random(n)
  _, grads = nce_and_grads(
    jnp.float32(video), jnp.float32(text), jnp.float32(confidence), scale
  )
  for argument, grad in ((0, grads[0]), (1, grads[1])):
    expected = np.zeros((n, d))
    for i in range(n):
      for k in range(d):
        values = []
        for sign in (1, -1):
          moved = [video.copy(), text.copy()]
          moved[argument][i, k] += sign * h
          values.append(reference(*moved, confidence, scale))
        expected[i, k] = (values[0] - values[1]) / (2 * h)
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-5)
  up, down = (reference(video, text, confidence, scale + s) for s in (h, -h))
  np.testing.assert_allclose(grads[2], (up - down) / (2 * h), rtol=1e-3)


def test_equal_confidences_give_the_plain_infonce_and_scale_cancels(rng):
  video, text = (jnp.float32(unit(rng, 9, 8)) for _ in range(2))
  S = 10.0 * video @ text.T
  rows, columns = jax.nn.log_softmax(S, axis=1), jax.nn.log_softmax(S, axis=0)
  plain = -(jnp.diagonal(rows).mean() + jnp.diagonal(columns).mean()) / 2
  for confidence in (1.0, 0.01):
    loss = nce(video, text, jnp.full(9, confidence), 10.0)
    np.testing.assert_allclose(loss, plain, rtol=1e-5)


def test_a_pair_with_weight_0_counts_only_as_a_negative(rng):
  video, text = (jnp.float32(unit(rng, 6, 8)) for _ in range(2))
  trusted = jnp.array([1.0, 1, 1, 1, 1, 0])
  whole = nce(video, text, trusted, 10.0)
  without = nce(video[:5], text[:5], trusted[:5], 10.0)
  assert whole > without + 1e-3  # its text and video are negatives still
  plain = nce(video, text, jnp.ones(6), 10.0)
  assert abs(float(whole - plain)) > 1e-3


def test_no_gradient_flows_into_the_confidence(rng):
  video, text = (jnp.float32(unit(rng, 6, 8)) for _ in range(2))
  grad = jax.jit(jax.grad(calibrated_nce, argnums=2))(
    video, text, jnp.float32(rng.random(6)), 10.0
  )
  assert not np.any(grad)


def test_a_permuted_batch_changes_nothing(rng):
  video, text = (jnp.float32(unit(rng, 16, 8)) for _ in range(2))
  confidence = jnp.float32(rng.random(16))
  order = rng.permutation(16)
  np.testing.assert_allclose(
    nce(video, text, confidence, 10.0),
    nce(video[order], text[order], confidence[order], 10.0),
    rtol=1e-6,
  )


def test_all_confidences_zero_give_zero_and_finite_gradients(rng):
  video, text = (jnp.float32(unit(rng, 6, 8)) for _ in range(2))
  loss, grads = nce_and_grads(video, text, jnp.zeros(6), 10.0)
  assert loss == 0
  assert all(not np.any(grad) for grad in grads)


@pytest.mark.parametrize("n", [1, 8])
def test_finite_at_the_extremes(n):
  video = np.eye(1, 4, dtype=np.float32).repeat(n, axis=0)
  text = -video  # the worst case: each text is opposite to its video
  for logit_scale in (0.01, 200.0):
    loss, grads = nce_and_grads(video, text, jnp.ones(n), logit_scale)
    np.testing.assert_allclose(loss, np.log(n), atol=1e-4)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_bfloat16_embeddings_give_a_float32_loss(rng):
  video, text = (jnp.bfloat16(unit(rng, 6, 8)) for _ in range(2))
  loss = nce(video, text, jnp.ones(6), 10.0)
  assert loss.dtype == jnp.float32
  expected = nce(
    video.astype(jnp.float32), text.astype(jnp.float32), jnp.ones(6), 10.0
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("model_parallel", [1, 2])
def test_eight_devices_equal_one(rng, model_parallel):
  video, text = (jnp.float32(unit(rng, 32, 16)) for _ in range(2))
  confidence = jnp.float32(rng.random(32))
  function = jax.value_and_grad(calibrated_nce, argnums=(0, 1, 3))
  plain = jax.jit(function)(video, text, confidence, 10.0)
  rows = NamedSharding(make_mesh(jax.devices(), model_parallel), P("data"))
  spread = [jax.device_put(x, rows) for x in (video, text, confidence)]
  assert len(spread[0].sharding.device_set) == 8
  sharded = jax.jit(function)(*spread, 10.0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    plain,
    sharded,
  )


@pytest.mark.parametrize(
  "shapes", [((4, 8), (5, 8), (4,)), ((4, 8), (4, 8), (3,)), ((4,), (4,), (4,))]
)
def test_shapes_that_do_not_agree_are_an_error(shapes):
  with pytest.raises(ValueError, match="must"):
    calibrated_nce(*(jnp.ones(shape) for shape in shapes), 1.0)
