"""What is saved is what comes back, on any devices; what is wrong is said."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from calince_jax import checkpoint, run_folder, sharding
from calince_jax.errors import UserError


def state_on(mesh, spec, scale=1.0):
  place = jax.sharding.NamedSharding(mesh, spec)
  whole = sharding.replicated(mesh)
  kernel = scale * jnp.arange(64, dtype=jnp.float32).reshape(16, 4) / 7
  return {
    "params": {"kernel": jax.device_put(kernel, place)},
    "step": jax.device_put(jnp.int32(5), whole),
  }


def shapes_of(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


@pytest.fixture
def saved(tmp_path):
  """Steps 1, 2 and 3 saved from 8 devices, of which the last 2 are kept."""
  with checkpoint.open_checkpoints(str(tmp_path), keep=2) as manager:
    for step in (1, 2, 3):
      state = state_on(sharding.make_mesh(), P("data"), scale=step)
      checkpoint.save(manager, step, state, CONFIG)
    # A step that is there already is not saved again.
    other = state_on(sharding.make_mesh(), P(), scale=9)
    checkpoint.save(manager, 3, other, CONFIG)
  return tmp_path


@pytest.mark.parametrize("spec", [P(), P("data"), P("model", "data")])
def test_any_mesh_restores_what_eight_devices_saved(saved, spec):
  wanted = state_on(sharding.make_mesh(2), spec, scale=3)
  with checkpoint.open_checkpoints(str(saved)) as manager:
    assert manager.latest_step() == 3
    restored = checkpoint.restore(manager, 3, shapes_of(wanted))
  jax.tree.map(np.testing.assert_array_equal, restored, wanted)
  assert restored["params"]["kernel"].sharding.spec == spec


def test_the_configuration_lies_in_each_checkpoint(saved):
  for step in (2, 3):
    file = saved / "checkpoints" / str(step) / "config" / "metadata"
    assert json.loads(file.read_text()) == {
      "format_version": run_folder.FORMAT_VERSION,
      "config": json.loads(json.dumps(CONFIG)),
    }


def test_parts_come_back_as_host_arrays(saved):
  step, parts = checkpoint.restore_parts(str(saved), None, ["params"])
  assert step == 3 and parts.keys() == {"params"}
  assert isinstance(parts["params"]["kernel"], np.ndarray)
  step, older = checkpoint.restore_parts(str(saved), 2, ["params", "step"])
  assert step == 2 and older["step"] == 5
  np.testing.assert_allclose(
    3 * older["params"]["kernel"], 2 * parts["params"]["kernel"], rtol=1e-6
  )


def test_only_the_latest_are_kept(saved):
  with pytest.raises(UserError, match=r"\[2, 3\], not 1"):
    checkpoint.restore_parts(str(saved), 1, ["params"])


def test_a_half_written_checkpoint_does_not_count(saved):
  folder = saved / "checkpoints"
  shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
  assert checkpoint.restore_parts(str(saved), None, ["step"])[0] == 3
  with checkpoint.open_checkpoints(str(saved)) as manager:
    assert manager.latest_step() == 3


def test_another_model_is_refused(saved):
  wanted = shapes_of(state_on(sharding.make_mesh(), P()))
  wanted["params"]["bias"] = wanted["params"].pop("kernel")
  with checkpoint.open_checkpoints(str(saved)) as manager:  # noqa: SIM117
    with pytest.raises(UserError, match=r"(?s)checkpoint 3 .*bias"):
      checkpoint.restore(manager, 3, wanted)


def test_another_shape_is_refused(saved):
  wanted = shapes_of(state_on(sharding.make_mesh(), P()))
  wanted["params"]["kernel"] = jax.ShapeDtypeStruct(
    (16, 5), np.float32, sharding=wanted["params"]["kernel"].sharding
  )
  with checkpoint.open_checkpoints(str(saved)) as manager:  # noqa: SIM117
    with pytest.raises(UserError, match=r"(?s)checkpoint 3 .*5"):
      checkpoint.restore(manager, 3, wanted)


def test_a_folder_without_checkpoints_is_named(tmp_path):
  with pytest.raises(UserError, match="has the run been trained"):
    checkpoint.restore_parts(str(tmp_path), None, ["params"])
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(UserError, match="no finished checkpoint"):
    checkpoint.restore_parts(str(tmp_path), None, ["params"])


CONFIG = {"seed": 0, "log_every": 5, "model": {"size": "S", "tubelet": (2, 4)}}


def test_the_configuration_comes_back(tmp_path):
  run_folder.write_config(str(tmp_path), CONFIG)
  run_folder.write_config(str(tmp_path), CONFIG)
  read = run_folder.read_config(str(tmp_path))
  assert read["model"] == {"size": "S", "tubelet": [2, 4]}
  document = json.loads((tmp_path / "config.json").read_text())
  assert document["format_version"] == run_folder.FORMAT_VERSION


@pytest.mark.parametrize(
  "changed, said",
  [
    (CONFIG | {"seed": 1}, "seed: 0 became 1"),
    (CONFIG | {"model": {"size": "S"}}, "model.tubelet is gone"),
    (CONFIG | {"more": 1}, "more is new"),
  ],
)
def test_differences_are_named_and_nothing_is_written(tmp_path, changed, said):
  run_folder.write_config(str(tmp_path), CONFIG)
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(UserError, match=said):
    run_folder.write_config(str(tmp_path), changed)
  assert (tmp_path / "config.json").read_bytes() == before


def test_what_does_not_decide_the_run_may_change(tmp_path):
  run_folder.write_config(str(tmp_path), CONFIG)
  run_folder.write_config(str(tmp_path), CONFIG | {"log_every": 7})
  assert run_folder.read_config(str(tmp_path))["log_every"] == 7


@pytest.mark.parametrize(
  "content, said",
  [
    ('{"format_version": 1, "con', "damaged"),
    ('{"config": {}}', "damaged.*format_version"),
    ("[1]", "damaged"),
    ('{"format_version": 99, "config": {}}', "99, newer"),
  ],
)
def test_a_damaged_or_newer_config_is_said(tmp_path, content, said):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(UserError, match=f"config.json.*{said}"):
    run_folder.read_config(str(tmp_path))


def test_not_a_run(tmp_path):
  with pytest.raises(UserError, match="not the folder of a run"):
    run_folder.read_config(str(tmp_path))


def test_a_bucket_stays_a_bucket(tmp_path, monkeypatch):
  folder = checkpoint.checkpoints_folder
  assert str(folder("gs://bucket/run")) == "gs://bucket/run/checkpoints"
  monkeypatch.chdir(tmp_path)
  assert str(folder("run")) == str(tmp_path / "run" / "checkpoints")
