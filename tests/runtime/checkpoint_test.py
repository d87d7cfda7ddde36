"""What is saved is restored, on any devices; errors name what is wrong."""

import json
import shutil
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from jax.sharding import PartitionSpec as P

from benchmarks.hostile import damage, settings
from calince_jax import config as config_lib
from calince_jax.data.tokenizer import Vocabulary
from calince_jax.errors import UserError
from calince_jax.runtime import checkpoint, run_folder, sharding
from calince_jax.training import setup


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


CONFIG = {"seed": 0, "log_every": 5, "model": {"size": "S", "tubelet": (2, 4)}}


@pytest.fixture
def saved(tmp_path):
  """Steps 1, 2 and 3 saved from 8 devices, of which the last 2 are kept."""
  with checkpoint.open_checkpoints(str(tmp_path), keep=2) as manager:
    for step in (1, 2, 3):
      state = state_on(sharding.make_mesh(jax.devices()), P("data"), scale=step)
      checkpoint.save(manager, step, state, CONFIG)
    # A step that is there already is not saved again.
    other = state_on(sharding.make_mesh(jax.devices()), P(), scale=9)
    checkpoint.save(manager, 3, other, CONFIG)
  return tmp_path


@pytest.mark.parametrize("spec", [P(), P("data"), P("model", "data")])
def test_any_mesh_restores_what_eight_devices_saved(saved, spec):
  wanted = state_on(sharding.make_mesh(jax.devices(), 2), spec, scale=3)
  with checkpoint.open_checkpoints(str(saved)) as manager:
    assert manager.latest_step() == 3
    restored = checkpoint.restore(manager, 3, shapes_of(wanted))
  jax.tree.map(np.testing.assert_array_equal, restored, wanted)
  assert restored["params"]["kernel"].sharding.spec == spec


def test_the_configuration_is_in_each_checkpoint(saved):
  for step in (2, 3):
    file = saved / "checkpoints" / str(step) / "config" / "metadata"
    assert json.loads(file.read_text()) == {
      "format_version": run_folder.FORMAT_VERSION,
      "config": json.loads(json.dumps(CONFIG)),
      "checksums": True,
    }


def test_parts_are_restored_as_host_arrays(saved):
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
  wanted = shapes_of(state_on(sharding.make_mesh(jax.devices()), P()))
  wanted["params"]["bias"] = wanted["params"].pop("kernel")
  with checkpoint.open_checkpoints(str(saved)) as manager:  # noqa: SIM117
    with pytest.raises(UserError, match=r"(?s)checkpoint 3 .*bias"):
      checkpoint.restore(manager, 3, wanted)


def test_another_shape_is_refused(saved):
  wanted = shapes_of(state_on(sharding.make_mesh(jax.devices()), P()))
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


def test_a_bucket_stays_a_bucket(tmp_path, monkeypatch):
  folder = checkpoint.checkpoints_folder
  assert str(folder("gs://bucket/run")) == "gs://bucket/run/checkpoints"
  monkeypatch.chdir(tmp_path)
  assert str(folder("run")) == str(tmp_path / "run" / "checkpoints")


# ------------------------------------------------------- what may go wrong


@pytest.mark.parametrize("name", ["pair_statistics", "visits"])
def test_pair_statistics_are_restored(tmp_path, rng, monkeypatch, name):
  # Older checkpoints have the item under its old name.
  monkeypatch.setattr(checkpoint, "PAIR_STATISTICS", name)
  pairs = {"score": rng.random(7), "matched": np.ones(7, np.int8)}
  state = state_on(sharding.make_mesh(jax.devices()), P())
  with checkpoint.open_checkpoints(str(tmp_path), keep=2) as manager:
    checkpoint.save(manager, 1, state, CONFIG, pairs)
    checkpoint.save(manager, 2, state, CONFIG)
    checkpoint.wait(manager)
  assert (tmp_path / "checkpoints" / "1" / name).is_dir()
  monkeypatch.undo()
  with checkpoint.open_checkpoints(str(tmp_path)) as manager:
    restored = checkpoint.restore_pair_statistics(manager, 1)
    assert checkpoint.restore_pair_statistics(manager, 2) == {}
  assert restored.keys() == pairs.keys()
  for key, value in pairs.items():
    np.testing.assert_array_equal(restored[key], value)
    assert restored[key].dtype == value.dtype


@pytest.mark.parametrize("file", ["config/metadata", "state/_METADATA"])
def test_a_damaged_checkpoint_is_an_error_that_names_the_earlier(saved, file):
  damaged = saved / "checkpoints" / "3" / file
  damaged.write_bytes(damaged.read_bytes()[:20])
  wanted = shapes_of(state_on(sharding.make_mesh(jax.devices()), P()))
  with checkpoint.open_checkpoints(str(saved)) as manager:
    with pytest.raises(
      UserError, match=r"checkpoint 3 .*whole there: 2\).*move 3"
    ):
      checkpoint.restore(manager, 3, wanted)
    checkpoint.restore(manager, 2, wanted)


def test_every_damage_is_seen_and_the_checkpoint_before_goes_on(tmp_path):
  """Flipped bits, cut, lost, exchanged and foreign files; see the benchmark."""
  rng = np.random.default_rng(2)
  damage.make_run(tmp_path / "run")
  refused, ways = 0, (damage.open_to_resume, damage.open_parts)
  for turn in range(2 * len(damage.DAMAGES)):
    what, words = damage.tried(
      tmp_path / "run",
      tmp_path / "damaged",
      ways[turn // len(damage.DAMAGES)],
      rng,
      turn,
      "checkpoints/2",
    )
    assert not settings.is_fault(words), (what, words)
    refused += bool(words)
    if words:
      assert "checkpoint 2 in " in words and "move 2 out of" in words, words
      assert "whole there: 1)" in words
  assert refused >= len(damage.DAMAGES)
  damage.go_on(tmp_path / "damaged", "the last of them")


def test_a_flipped_bit_of_a_number_is_named(saved):
  path = max(
    (
      p
      for p in (saved / "checkpoints" / "3" / "state").rglob("*")
      if p.is_file()
    ),
    key=lambda p: p.stat().st_size,
  )
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 64
  path.write_bytes(data)
  with pytest.raises(UserError, match=f"{path.name} has other bytes than were"):
    checkpoint.restore_parts(str(saved), None, ["params"])


def test_lost_checksums_are_damage_and_older_checkpoints_have_none(
  saved, capsys
):
  (saved / "checkpoints" / "3" / "checksums.json").unlink()
  with pytest.raises(UserError, match="checksums.json is missing"):
    checkpoint.restore_parts(str(saved), None, ["params"])
  metadata = saved / "checkpoints" / "3" / "config" / "metadata"
  document = json.loads(metadata.read_text())
  del document["checksums"]
  metadata.write_text(json.dumps(document))
  assert checkpoint.restore_parts(str(saved), None, ["params"])[0] == 3
  assert "no checksums (an older version wrote it)" in capsys.readouterr().out


def test_a_file_in_the_place_of_the_checkpoints_is_named(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(UserError, match="checkpoints is not a folder"):  # noqa: SIM117
    with checkpoint.open_checkpoints(str(tmp_path)):
      pass


def test_a_save_that_fails_is_one_error_and_leaves_the_one_before(
  saved, monkeypatch
):
  """In the background, as on a disk that has become full."""

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(checkpoint.checksums, "write", full)
  state = state_on(sharding.make_mesh(jax.devices()), P())
  with pytest.raises(UserError, match=r"can be saved .*whole there: 2, 3\)"):  # noqa: SIM117
    with checkpoint.open_checkpoints(str(saved), keep=2) as manager:
      checkpoint.save(manager, 4, state, CONFIG)
      checkpoint.wait(manager)
  monkeypatch.undo()
  assert checkpoint.restore_parts(str(saved), None, ["step"])[0] == 3


def test_half_written_checkpoints_are_listed_and_not_touched(saved):
  folder = saved / "checkpoints"
  assert checkpoint.half_written(str(saved)) == []
  name = "5.orbax-checkpoint-tmp"
  shutil.copytree(folder / "3", folder / name)
  assert checkpoint.half_written(str(saved)) == [name]
  state = state_on(sharding.make_mesh(jax.devices()), P("data"))
  with checkpoint.open_checkpoints(str(saved), keep=2) as manager:
    checkpoint.save(manager, 4, state, CONFIG)
  assert checkpoint.half_written(str(saved)) == [name]
  assert checkpoint.restore_parts(str(saved), None, ["step"])[0] == 4
  # Saved again, the same step takes its place.
  with checkpoint.open_checkpoints(str(saved), keep=2) as manager:
    checkpoint.save(manager, 5, state, CONFIG)
  assert checkpoint.half_written(str(saved)) == []
  assert checkpoint.restore_parts(str(saved), None, ["step"])[0] == 5


# ------------------------------------------------------- older formats

GOLDENS = ROOT / "tests" / "goldens"


def golden_run(version, folder):
  """The folder of a run as that format wrote it."""
  with tarfile.open(GOLDENS / f"checkpoint_v{version}.tar.xz") as archive:
    archive.extractall(folder, filter="data")
  return folder


def test_there_is_a_golden_checkpoint_of_every_format():
  names = {p.name for p in GOLDENS.glob("checkpoint_v*")}
  versions = range(1, run_folder.FORMAT_VERSION + 1)
  assert names == {f"checkpoint_v{v}.tar.xz" for v in versions}


@pytest.mark.parametrize("ways", [(1, 1), (2, 2), (2, 4)])
@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_older_checkpoints_can_be_read(version, ways, tmp_path):
  run = golden_run(version, tmp_path)
  config = config_lib.read_run(str(run))
  assert config["grad_cache_chunks"] == 1 and "similarities" in config
  mesh = jax.make_mesh(
    ways,
    ("data", "model"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[: ways[0] * ways[1]],
  )
  config["sharding"]["rules"] = [(".*", "model" if ways[1] > 1 else "fsdp")]
  training = setup.compile_training(
    config, mesh, vocabulary=Vocabulary(80), num_pairs=104
  )
  with checkpoint.open_checkpoints(str(run)) as manager:
    # A run that is resumed reads no weights that it may once have begun from.
    state, step, pairs = setup.start_or_resume(
      manager, training, seed=0, warm=lambda params: pytest.fail("was read")
    )
  assert step == 3 and pairs == {}
  assert state.step == 3 and state.skipped_steps == 0
  spread = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    spread += not leaf.sharding.is_fully_replicated
    assert leaf.sharding.mesh == mesh
    if sharding.path_name(path) not in ("step", "skipped_steps"):
      pattern = (np.arange(leaf.size) % 7).reshape(leaf.shape)
      np.testing.assert_array_equal(leaf, pattern.astype(leaf.dtype))
  assert bool(spread) == (mesh.size > 1)
  step, parts = checkpoint.restore_parts(str(run), None, ["ema_params"])
  assert step == 3 and jax.tree.leaves(parts)


def test_confidences_of_pairs_are_kept_where_they_are_averaged(tmp_path):
  """Once saved as many as there were pairs, and by every run; now padded."""
  run = golden_run(3, tmp_path)
  config = config_lib.read_run(str(run))
  mesh = sharding.make_mesh(jax.devices())
  for memory, sizes in ((0.0, None), (0.9, {"confidence", "visits"})):
    config["objective"] |= {"memory": memory, "trust": "schedule"}
    training = setup.compile_training(
      config, mesh, vocabulary=Vocabulary(80), num_pairs=104
    )
    with checkpoint.open_checkpoints(str(run)) as manager:
      state, _, _ = setup.start_or_resume(manager, training, seed=0)
    kept = state.calibration.get("memory", {})
    assert set(kept) == (sizes or set())
    for leaf in kept.values():
      assert leaf.shape == (sharding.padded(104),)
      np.testing.assert_array_equal(leaf[:104], np.arange(104) % 7)
      assert not leaf[104:].any()
