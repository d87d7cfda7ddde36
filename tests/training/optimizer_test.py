"""The learning rate over a run, and what decays."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from calince_jax.config import Optimizer
from calince_jax.training import optimizer

SETTINGS = Optimizer(
  learning_rate=0.5,
  warmup_share=0.0,
  weight_decay=0.5,
  max_grad_norm=1.0,
  b1=0.9,
  b2=0.98,
  ema_decay=0.9,
)


def rates(peak, total_steps, warmup_steps):
  settings = dataclasses.replace(
    SETTINGS, learning_rate=peak, warmup_share=warmup_steps / total_steps
  )
  schedule = optimizer.learning_rate_schedule(settings, total_steps)
  return [float(schedule(step)) for step in range(total_steps + 1)]


def test_warms_up_and_falls_to_zero():
  seen = rates(0.5, 10, 4)
  np.testing.assert_allclose(seen[:5], [0, 0.125, 0.25, 0.375, 0.5])
  half = 0.5 * 0.5 * (1 + np.cos(np.pi * np.arange(7) / 6))
  np.testing.assert_allclose(seen[4:], half, atol=1e-7)


@pytest.mark.parametrize("total_steps", [1, 2, 10])
def test_without_warm_up_the_first_step_counts(total_steps):
  assert rates(0.5, total_steps, 0)[0] == 0.5


@pytest.mark.parametrize("warmup_steps", [10, 11])
def test_the_warm_up_must_fit_into_the_run(warmup_steps):
  with pytest.raises(ValueError, match="warmup_share"):
    rates(0.5, 10, warmup_steps)


def test_only_matrices_decay():
  params = {
    "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2)},
    "tokens": {"embedding": jnp.ones((3, 2))},
    "log_logit_scale": jnp.ones(()),
  }
  assert optimizer.decay_mask(params) == {
    "dense": {"kernel": True, "bias": False},
    "norm": {"scale": False},
    "tokens": {"embedding": True},
    "log_logit_scale": False,
  }
  tx = optimizer.make_optimizer(SETTINGS, lambda step: 0.1)
  zero = {name: 0 * value for name, value in params["dense"].items()}
  updates, _ = tx.update(zero, tx.init(params["dense"]), params["dense"])
  np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5, rtol=1e-6)
  np.testing.assert_array_equal(updates["bias"], 0)
