"""Running moments against plain sums."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calince_jax.losses import moments


def moments_loops(batches, decay):
  """All values so far, each with its batch's decayed weight."""
  weighted = [
    (decay ** (len(batches) - 1 - age) / len(batch), value)
    for age, batch in enumerate(batches)
    for value in batch
  ]
  total = sum(weight for weight, _ in weighted)
  mean = sum(weight * value for weight, value in weighted) / total
  square = sum(weight * (value - mean) ** 2 for weight, value in weighted)
  return mean, math.sqrt(square / total)


@pytest.mark.parametrize("decay", [0.5, 0.99, 1.0])
@pytest.mark.parametrize("centre, spread", [(0.0, 0.3), (0.9, 1e-3)])
def test_moments_equal_plain_loops_in_float64(rng, decay, centre, spread):
  seen, batches = moments.init_moments(), []
  for _ in range(6):
    batch = rng.normal(loc=centre + spread * len(batches), scale=spread, size=8)
    batches.append([float(np.float32(value)) for value in batch])
    seen = moments.update_moments(seen, jnp.float32(batch), decay)
    mean, std = moments.mean_and_std(seen)
    expected = moments_loops(batches, decay)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, expected[1], rtol=1e-3)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(seen))


def test_the_first_batch_gives_its_own_moments_and_none_gives_zero(rng):
  empty = moments.init_moments()
  assert moments.mean_and_std(empty) == (0, 0)
  values = jnp.float32(rng.normal(size=16))
  mean, std = moments.mean_and_std(moments.update_moments(empty, values, 0.999))
  np.testing.assert_allclose([mean, std], [values.mean(), values.std()], 1e-5)


def test_standardised_values_have_mean_0_and_deviation_1(rng):
  values = jnp.float32(rng.normal(3.0, 0.2, size=1_000))
  seen = moments.update_moments(moments.init_moments(), values, 0.9)
  x = np.asarray(moments.standardise(seen, values))
  np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-3)
  assert np.isfinite(moments.standardise(moments.init_moments(), values)).all()


def test_no_gradient_flows_through_the_moments():
  def total(values):
    seen = moments.update_moments(moments.init_moments(), values, 0.9)
    return moments.standardise(seen, values).sum() + seen["mean"]

  assert not np.any(jax.grad(total)(jnp.array([0.5, -1.0, 2.0])))
