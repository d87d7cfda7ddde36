"""Meshes, rules, and rows."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from calince_jax.errors import UserError
from calince_jax.runtime import sharding

TREE = {
  "encoder": {"kernel": jax.ShapeDtypeStruct((3, 128, 256), np.float32)},
  "head": {"bias": jax.ShapeDtypeStruct((256,), np.float32)},
}


def specs(mesh, rules, **more):
  tree = sharding.shardings(TREE, mesh, rules, **more)
  return tree["encoder"]["kernel"].spec, tree["head"]["bias"].spec


def test_fsdp_shards_the_largest_axis_and_leaves_small_ones_whole():
  mesh = sharding.make_mesh()
  assert specs(mesh, [(".*", "fsdp")]) == (P(None, None, "data"), P(None))
  assert specs(mesh, [(".*", "fsdp")], smallest=1)[1] == P("data")


def test_model_rule_uses_both_axes():
  mesh = sharding.make_mesh(2)
  kernel, _ = specs(mesh, [(".*", "model")])
  assert kernel == P(None, "data", "model")


def test_the_first_rule_that_matches_decides():
  mesh = sharding.make_mesh()
  rules = [("encoder/kernel", "replicate"), (".*", "fsdp")]
  assert specs(mesh, rules, smallest=1) == (P(None, None, None), P("data"))


def test_what_no_rule_matches_is_named():
  with pytest.raises(UserError, match="head/bias"):
    specs(sharding.make_mesh(), [("encoder", "fsdp")])
  with pytest.raises(UserError, match="replicate"):
    specs(sharding.make_mesh(), [(".*", "zero")])


@pytest.mark.parametrize("model_parallel", [1, 2, 8])
def test_one_process_holds_all_rows(model_parallel):
  mesh = sharding.make_mesh(model_parallel)
  assert sharding.local_rows(16, mesh).tolist() == list(range(16))


def test_batch_size_must_fit_the_devices():
  with pytest.raises(UserError, match="12"):
    sharding.check_batch_size(12, sharding.make_mesh())
  with pytest.raises(UserError, match="model_parallel=3"):
    sharding.make_mesh(3)


def test_to_global_spreads_the_rows(rng):
  mesh = sharding.make_mesh()
  x = rng.normal(size=(16, 3)).astype(np.float32)
  spread = sharding.to_global({"x": x}, mesh)["x"]
  np.testing.assert_array_equal(spread, x)
  assert spread.addressable_shards[0].data.shape == (2, 3)
