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


def test_an_axis_of_the_torus_may_be_split():
  """8 x 2 of 4 x 4 chips, as 16 x 16 chips of v6e with 4 to a model."""
  mesh = sharding.make_mesh(square(4), 2)
  assert dict(mesh.shape) == {"data": 8, "model": 2}
  assert len({d.id for d in mesh.devices.flat}) == 16


def test_slices_are_an_axis_of_their_own():
  """Two TPU slices: the first axis goes over the slower network."""
  chips = square(2)
  second = [dataclasses.replace(c, id=c.id + 4, slice_index=1) for c in chips]
  mesh = sharding.make_mesh([*chips, *second])
  assert dict(mesh.shape) == {"slice": 2, "data": 4, "model": 1}
  for i, devices in enumerate(mesh.devices):
    assert {d.slice_index for d in devices.flat} == {i}
  assert sharding.batch_axes(mesh) == ("slice", "data")
  assert sharding.batch_ways(mesh) == 8
  # A group may be a part of a slice, but not of two.
  finer = sharding.make_mesh([*chips, *second], slices=4)
  assert dict(finer.shape) == {"slice": 4, "data": 2, "model": 1}
  with pytest.raises(UserError, match="slices=3.*8 devices, of 2 slice"):
    sharding.make_mesh([*chips, *second], slices=3)


@pytest.mark.parametrize(
  "devices, groups", [(8, 1), (16, 1), (17, 1), (24, 2), (256, 16), (512, 32)]
)
def test_larger_slices_are_divided_into_groups(devices, groups):
  """16 devices at most, 8 at least; 17 have no such part."""
  chips = [Chip(i, (i, 0, 0)) for i in range(devices)]
  mesh = sharding.make_mesh(chips)
  assert sharding.num_slices(mesh) == groups
  assert mesh.shape["data"] == devices // groups
  assert sharding.num_slices(sharding.make_mesh(chips, slices=1)) == 1


def test_what_a_rule_replicates_is_not_said_to_have_fallen_back():
  tree = {"a": jax.ShapeDtypeStruct((12, 20), np.float32)}
  mesh = sharding.make_mesh(jax.devices())
  for rule, listed in (("fsdp", [("a", 960)]), ("replicate", [])):
    rules = [(".*", rule)]
    layout = sharding.shardings(tree, mesh, rules, smallest=1)
    found = sharding.replicated_leaves(tree, layout, rules, smallest=1)
    assert found == listed


def test_the_pairs_are_padded_so_that_devices_divide_them():
  for pairs in (1, 6144, 10_000_000):
    padded = sharding.padded(pairs)
    assert pairs <= padded < pairs + 6144
    assert all(padded % n == 0 for n in (8, 12, 256, 768, 2048))


def test_a_matrix_that_no_axis_divides_is_listed_and_slices_help():
  """768 over 512 devices, in small: 12 over 8, and over 4."""
  tree = {"kernel": jax.ShapeDtypeStruct((12, 20), np.float32)}
  rules = [(".*", "fsdp")]
  for slices, listed in ((1, [("kernel", 960)]), (2, [])):
    mesh = sharding.make_mesh(jax.devices(), slices=slices)
    layout = sharding.shardings(tree, mesh, rules, smallest=1)
    assert sharding.replicated_leaves(tree, layout, smallest=1) == listed


def test_devices_that_cannot_be_arranged_are_a_clear_error():
  chips = [*square(2)[:3], Chip(3, (5, 1, 0))]  # not a rectangle
  message = f"{len(chips)} devices.*TPU v5.*cannot be arranged.*model_parallel"
  with pytest.raises(UserError, match=message):
    sharding.make_mesh(chips)


def test_to_global_spreads_the_rows(rng):
  mesh = sharding.make_mesh(jax.devices())
  x = rng.normal(size=(16, 3)).astype(np.float32)
  spread = sharding.to_global({"x": x}, mesh)["x"]
  np.testing.assert_array_equal(spread, x)
  assert spread.addressable_shards[0].data.shape == (2, 3)
