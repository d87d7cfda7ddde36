"""The learning rate over a run, and what decays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calince_jax.config import Optimizer
from calince_jax.errors import UserError
from calince_jax.training import optimizer

SETTINGS = Optimizer(
  learning_rate=0.5,
  warmup_share=0.0,
  weight_decay=0.5,
  max_grad_norm=1.0,
  b1=0.9,
  b2=0.98,
  ema_decay=0.9,
  multipliers=(),
  layer_decay=1.0,
  trained_blocks=0,
  frozen="",
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


TOWER = {
  "video_encoder": {
    "patch_embedding": {"kernel": jnp.ones((4, 2))},
    "spatial": {
      "blocks": {"mlp": {"kernel": jnp.ones((3, 2, 2))}},
      "norm": {"scale": jnp.ones(2)},
    },
    "temporal": {"blocks": {"mlp": {"kernel": jnp.ones((1, 2, 2))}}},
  },
  "text_encoder": {
    "position": jnp.ones((5, 2)),
    "transformer": {
      "block_0": {"mlp": {"kernel": jnp.ones((2, 2))}},
      "block_1": {"mlp": {"kernel": jnp.ones((2, 2))}},
    },
  },
  "video_projection": {"kernel": jnp.ones((2, 2))},
}


def stepped(**changes):
  """How far each parameter of TOWER went in one step, without decay."""
  settings = dataclasses.replace(SETTINGS, weight_decay=0.0, **changes)
  tx = optimizer.make_optimizer(settings, lambda step: 0.5)
  grads = jax.tree.map(lambda x: 0.01 + 0 * x, TOWER)
  updates, _ = jax.jit(tx.update)(grads, tx.init(TOWER), TOWER)
  leaves = jax.tree_util.tree_leaves_with_path(updates)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(-leaf)
    for path, leaf in leaves
  }


def test_a_block_learns_slower_than_the_one_after_it():
  plain, slower = stepped(), stepped(layer_decay=0.5)
  ratios = {name: slower[name] / plain[name] for name in plain}
  blocks = ratios["video_encoder/spatial/blocks/mlp/kernel"]
  np.testing.assert_allclose(blocks[:, 0, 0], [0.125, 0.25, 0.5], rtol=1e-3)
  expected = {
    "video_encoder/patch_embedding/kernel": 0.0625,
    "video_encoder/spatial/norm/scale": 1,
    "video_encoder/temporal/blocks/mlp/kernel": 1,
    "text_encoder/position": 0.125,
    "text_encoder/transformer/block_0/mlp/kernel": 0.25,
    "text_encoder/transformer/block_1/mlp/kernel": 0.5,
    "video_projection/kernel": 1,
  }
  for name, ratio in expected.items():
    np.testing.assert_allclose(ratios[name], ratio, rtol=1e-3, err_msg=name)


def test_only_the_last_blocks_are_trained():
  for name, far in stepped(trained_blocks=1).items():
    if "spatial/blocks" in name:
      assert not far[:2].any() and far[2].all()
    else:
      first = "patch" in name or "position" in name or "block_0" in name
      assert far.any() != first, name


def test_the_first_expression_that_is_found_counts():
  pairs = (("video_projection", 10.0), ("video", 0.1))
  plain, changed = stepped(), stepped(multipliers=pairs)
  for name in plain:
    ratio = 10 if name.startswith("video_p") else 0.1 if "video" in name else 1
    np.testing.assert_allclose(changed[name] / plain[name], ratio, rtol=1e-3)


def test_what_is_frozen_stays_and_does_not_count_in_the_norm():
  changes = {"frozen": "^text_encoder/", "weight_decay": 0.5}
  settings = dataclasses.replace(SETTINGS, **changes)
  tx = optimizer.make_optimizer(settings, lambda step: 0.5)
  grads = jax.tree.map(lambda x: 0.01 + 0 * x, TOWER)
  grads["text_encoder"]["position"] = jnp.full((5, 2), 1e6)
  updates, state = tx.update(grads, tx.init(TOWER), TOWER)
  assert not any(x.any() for x in jax.tree.leaves(updates["text_encoder"]))
  mean = state[2][0].mu["video_projection"]["kernel"]
  np.testing.assert_allclose(mean, 0.1 * 0.01, rtol=1e-3)  # not clipped


def test_an_expression_of_no_parameter_is_named():
  settings = dataclasses.replace(SETTINGS, frozen="txt_encoder")
  with pytest.raises(UserError, match="frozen: 'txt_encoder' is found in no"):
    optimizer.check_patterns(settings, TOWER)
  settings = dataclasses.replace(SETTINGS, multipliers=(("head_7", 2),))
  with pytest.raises(UserError, match="multipliers: 'head_7'"):
    optimizer.check_patterns(settings, TOWER)
