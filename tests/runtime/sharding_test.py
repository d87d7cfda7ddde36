"""Meshes, rules, and rows."""

import dataclasses

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
  mesh = sharding.make_mesh(jax.devices())
  assert specs(mesh, [(".*", "fsdp")]) == (P(None, None, "data"), P(None))
  assert specs(mesh, [(".*", "fsdp")], smallest=1)[1] == P("data")


def test_model_rule_uses_both_axes():
  mesh = sharding.make_mesh(jax.devices(), 2)
  kernel, _ = specs(mesh, [(".*", "model")])
  assert kernel == P(None, "data", "model")


def test_the_first_rule_that_matches_decides():
  mesh = sharding.make_mesh(jax.devices())
  rules = [("encoder/kernel", "replicate"), (".*", "fsdp")]
  assert specs(mesh, rules, smallest=1) == (P(None, None, None), P("data"))


def test_what_no_rule_matches_is_named():
  with pytest.raises(UserError, match="head/bias"):
    specs(sharding.make_mesh(jax.devices()), [("encoder", "fsdp")])
  with pytest.raises(UserError, match="replicate"):
    specs(sharding.make_mesh(jax.devices()), [(".*", "zero")])


@pytest.mark.parametrize("model_parallel", [1, 2, 8])
def test_one_process_holds_all_rows(model_parallel):
  mesh = sharding.make_mesh(jax.devices(), model_parallel)
  assert sharding.local_rows(16, mesh).tolist() == list(range(16))


def test_batch_size_must_fit_the_devices():
  with pytest.raises(UserError, match="12"):
    sharding.check_batch_size(12, sharding.make_mesh(jax.devices()))
  with pytest.raises(UserError, match="model_parallel=3"):
    sharding.make_mesh(jax.devices(), 3)


@pytest.mark.parametrize("model_parallel", [1, 2])
def test_a_mesh_holds_the_devices_that_it_is_given(model_parallel):
  mesh = sharding.make_mesh(jax.devices()[2:6], model_parallel)
  assert dict(mesh.shape) == {
    "data": 4 // model_parallel,
    "model": model_parallel,
  }
  assert sorted(d.id for d in mesh.devices.flat) == [2, 3, 4, 5]


@dataclasses.dataclass(frozen=True)
class Chip:
  """A TPU chip of a machine that is not here."""

  id: int
  coords: tuple[int, int, int]
  core_on_chip: int = 0
  process_index: int = 0
  slice_index: int = 0
  platform: str = "tpu"
  device_kind: str = "TPU v5"


def square(side):
  return [Chip(i, (i % side, i // side, 0)) for i in range(side * side)]


def test_devices_of_another_machine_make_a_mesh():
  mesh = sharding.make_mesh(square(2), 2)
  assert [[d.id for d in row] for row in mesh.devices] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
  "chips, model_parallel",
  [
    (square(4), 2),  # a ring of 8 would have to split an axis of the torus
    ([*square(2)[:3], Chip(3, (5, 1, 0))], 1),  # not a rectangle
  ],
)
def test_devices_that_cannot_be_arranged_are_a_clear_error(
  chips, model_parallel
):
  message = f"{len(chips)} devices.*TPU v5.*cannot be arranged.*model_parallel"
  with pytest.raises(UserError, match=message):
    sharding.make_mesh(chips, model_parallel)


def test_to_global_spreads_the_rows(rng):
  mesh = sharding.make_mesh(jax.devices())
  x = rng.normal(size=(16, 3)).astype(np.float32)
  spread = sharding.to_global({"x": x}, mesh)["x"]
  np.testing.assert_array_equal(spread, x)
  assert spread.addressable_shards[0].data.shape == (2, 3)
