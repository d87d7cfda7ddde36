"""What is read of a folder, what is refused, and how a run starts from it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from architectures_test import GOLDENS, model, video_tower, warm
from conftest import PLAIN_SAMPLING, TINY_CONFIG, TINY_MODEL, fresh_params
from safetensors.numpy import load_file, save_file

from calince_jax import config as config_lib
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError
from calince_jax.inference import exported
from calince_jax.inference.model import VideoTextModel
from calince_jax.losses import calibration
from calince_jax.models.cali_nce import TEXT_TOWERS
from calince_jax.runtime import checkpoint, sharding
from calince_jax.training import setup
from calince_jax.warm_start import start
from calince_jax.warm_start.architectures import tower_settings
from configs import warm_start


@pytest.fixture
def copied(tmp_path):
  """A copy of a golden folder, to be damaged."""

  def copy(name):
    return shutil.copytree(GOLDENS / name, tmp_path / name)

  return copy


def change(path, **values):
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_every_array_and_parameter_has_its_row():
  folder = GOLDENS / "clip"
  config = model(folder)
  params, rows = warm(config, video=folder, text=folder)
  towers = {
    f"{tower}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
    for tower in ("video_encoder", "text_encoder")
    for path, _ in jax.tree_util.tree_leaves_with_path(params[tower])
  }
  named = [row.name for row in rows if row.status != "left out"]
  heads = {"video_projection/kernel", "text_projection/kernel"}
  assert sorted(named) == sorted(towers | heads)
  # Each is read once for its own tower, and left out for the other.
  left = {row.name for row in rows if row.status == "left out"}
  assert left == set(load_file(folder / "model.safetensors"))
  counted = start.summary(rows)
  assert (
    f"{len(named) - 1} loaded, 0 inflated, 0 interpolated, 1 new" in counted
  )
  lines = start.as_csv(rows).splitlines()
  assert lines[0] == "status,name,detail" and len(lines) == 1 + len(rows)
  # What belongs to no tower is as fresh as before.
  fresh = fresh_params(config)
  for name in fresh.keys() - {n.split("/")[0] for n in named}:
    jax.tree.map(np.testing.assert_array_equal, fresh[name], params[name])


def test_several_files_are_read_as_one(copied):
  folder = copied("vit")
  config = model(GOLDENS / "vit")
  before, _ = warm(config, video=folder)
  arrays = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  places = {}
  for i, name in enumerate(sorted(arrays)):
    places[name] = f"model-{i % 2}.safetensors"
  for file in set(places.values()):
    save_file(
      {n: arrays[n] for n in arrays if places[n] == file}, folder / file
    )
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": places}))
  after, _ = warm(config, video=folder)
  jax.tree.map(np.testing.assert_array_equal, before, after)
  (folder / "model-1.safetensors").unlink()
  with pytest.raises(UserError, match=r"lacks model-1.safetensors"):
    warm(config, video=folder)
  index.write_text(json.dumps({"weight_map": {"a": "../bert/x.safetensors"}}))
  with pytest.raises(UserError, match="not a file beside it"):
    warm(config, video=folder)


def cut(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def without(name):
  def remove(folder):
    path = folder / "model.safetensors"
    arrays = load_file(path)
    del arrays[name]
    save_file(arrays, path)

  return remove


def not_finite(folder):
  path = folder / "model.safetensors"
  arrays = load_file(path)
  arrays["layernorm.bias"][0] = np.nan
  save_file(arrays, path)


def flat_kernel(folder):
  path, name = (
    folder / "model.safetensors",
    "patch_embeddings.projection.weight",
  )
  arrays = load_file(path)
  arrays[f"embeddings.{name}"] = arrays[f"embeddings.{name}"].reshape(-1)
  save_file(arrays, path)


def other_pixels(folder):
  change(folder / "preprocessor_config.json", image_mean="grey")


def said(**values):
  return lambda folder: change(folder / "config.json", **values)


def pickled(folder):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
  "damage, message",
  [
    (shutil.rmtree, "not a folder of weights: no config.json"),
    (cut, "model.safetensors cannot be read .*damaged or cut"),
    (without("layernorm.bias"), "lacks the array layernorm.bias"),
    (not_finite, "layernorm.bias holds numbers that are not finite"),
    (said(model_type="resnet"), "architecture 'resnet'; a video tower .*clip"),
    (said(model_type="clip"), "0 arrays called embeddings.class_embedding"),
    (said(hidden_size=32), "has size='32x2x2x24', not '16x2x2x24'"),
    (said(patch_size=4), "patch=4, not 8"),
    (said(hidden_act="relu"), "'relu' is not computed by the tower frame_vit"),
    (said(qkv_bias=False), "qkv_bias=False is not computed"),
    (said(hidden_size=15), "a size of 15x2x2x24 makes no tower"),
    (said(layer_norm_eps="a"), "layer_norm_eps='a' is no number"),
    (said(patch_size=[8, 8]), r"patch_size=\[8, 8\] is no number"),
    (said(hidden_act=["gelu"]), "not computed"),
    (other_pixels, "image_mean='grey' must be three numbers"),
    (flat_kernel, "an array is not of the shape that vit has"),
    (pickled, "pytorch_model.bin is a pickle, which is never opened"),
  ],
)
def test_a_folder_that_does_not_do_is_named_in_one_line(
  copied, damage, message
):
  folder, config = copied("vit"), model(GOLDENS / "vit")
  damage(folder)
  with pytest.raises(UserError, match=message) as error:
    warm(config, video=folder)
  assert "\n" not in str(error.value)


def test_a_model_of_another_form_says_which_configuration_has_it():
  with pytest.raises(UserError, match="warm_start.py:video=.*/vit sets it"):
    warm(model(GOLDENS / "dinov2"), video=GOLDENS / "vit")
  with pytest.raises(UserError, match="text.name is 'transformer'"):
    warm(model(GOLDENS / "vit"), text=GOLDENS / "bert")
  clip = dataclasses.replace(
    TINY_MODEL.video, size="16x2x2x24", tubelet=(1, 8), pixels="scaled"
  )
  with pytest.raises(UserError, match="no quick_gelu"):
    warm(model(GOLDENS / "clip", video=clip), video=GOLDENS / "clip")


def test_the_ids_of_the_data_are_those_of_the_weights():
  folder = GOLDENS / "bert"
  folders = {"video": "", "text": str(folder)}
  config = model(folder)
  with pytest.raises(UserError, match="prepare the data with --tokenizer="):
    start.start(fresh_params(config), config, folders, b"other")
  with pytest.raises(UserError, match="positions for 12 tokens: lower"):
    warm(model(folder, text_length=13), text=folder)


def test_a_model_without_a_mask_token_hides_no_words():
  with pytest.raises(ValueError, match="choose 'caption' or 'latent'"):
    model(GOLDENS / "clip", mask_id=None)
  model(GOLDENS / "clip", mask_id=None, predictive_task="caption")


def test_the_configuration_of_folders_is_that_of_their_towers():
  video, text = GOLDENS / "siglip", GOLDENS / "clip"
  config = warm_start.get_config(f"video={video},text={text}")
  assert config.model.video.size == "16x2x2x24"
  assert config.model.video.pooling == "map"
  assert config.model.text.to_dict() == tower_settings(text, "text")
  assert config.model.predictive_task == "caption"
  named = {"video": str(video), "text": str(text), "model": ""}
  assert config.init.to_dict() == named
  with pytest.raises(UserError, match="'audio=x' is neither video=DIR"):
    warm_start.get_config("audio=x")


def test_sentences_are_pooled_as_their_folder_says(copied):
  folder = copied("bert")
  (folder / "1_Pooling").mkdir()
  pooling = folder / "1_Pooling" / "config.json"
  pooling.write_text(json.dumps({"pooling_mode_mean_tokens": True}))
  assert tower_settings(folder, "text")["pooling"] == "mean"
  assert TEXT_TOWERS["bert"](**tower_settings(folder, "text")).num_heads == 2


def test_an_image_tower_for_longer_clips_keeps_what_it_has():
  """Temporal blocks are new, and the rest is loaded."""
  folder = GOLDENS / "vit"
  config = model(folder, video=video_tower(folder, temporal_depth=1))
  _, rows = warm(config, video=folder)
  new = {row.name.split("/")[1] for row in rows if row.status == "new"}
  assert new == {"temporal", "time_position", "temporal_out", "kernel"}


def test_a_run_begins_from_the_weights_and_reports_them(tmp_path, capsys):
  """Its average too, and its optimizer knows no other parameters."""
  video, text = GOLDENS / "vit", GOLDENS / "bert"
  config = warm_start.get_config(f"video={video},text={text}")
  changes = {
    name: value
    for name, value in TINY_CONFIG.items()
    if not name.startswith(("model.video", "model.text"))
  }
  changes |= {"data.image_size": 24, "data.text_length": 8}
  config.update_from_flattened_dict(changes)
  config = config.to_dict()
  config_lib.check(config)
  tokenizer = Tokenizer(text / "tokenizer.json")
  mesh = sharding.make_mesh(jax.devices())
  training = setup.compile_training(
    config, mesh, vocabulary=tokenizer.vocabulary, num_pairs=16
  )
  data = {"tokenizer_path": text / "tokenizer.json"}
  warm = setup.open_warm_start(config, str(tmp_path), data, training)
  with checkpoint.open_checkpoints(str(tmp_path)) as manager:
    state, step, _ = setup.start_or_resume(manager, training, 0, warm)
  assert step == 0 == int(state.step)
  arrays = load_file(video / "model.safetensors")
  for params in (state.params, state.ema_params):
    tower = params["video_encoder"]
    np.testing.assert_array_equal(
      tower["spatial"]["norm"]["scale"], arrays["layernorm.weight"]
    )
    assert params["video_projection"]["kernel"].any()  # fresh
  assert jax.tree.map(lambda x: x.sharding, state) == training.layout
  for leaf in jax.tree.leaves(state.opt_state):
    assert not np.asarray(leaf).any()
  lines = (tmp_path / "warm_start.csv").read_text().splitlines()
  assert "left out,pooler.dense.bias," in lines
  said = capsys.readouterr().out
  assert f"warm start from {video}, {text}: " in said
  assert " loaded, 0 inflated, " in said


def test_an_export_starts_another_run(tmp_path):
  """With another number of frames, and blocks that are not scanned."""
  config = dataclasses.replace(TINY_MODEL, vocab_size=18)
  params = fresh_params(config)
  tokenizer = Tokenizer(GOLDENS / "bert" / "tokenizer.json")
  frozen = calibration.inference_calibration(
    jax.tree.map(np.asarray, calibration.init_state()),
    scorer="both",
    noise_rate=None,
  )
  sampling = dataclasses.replace(PLAIN_SAMPLING, num_frames=4)
  exported.write(
    tmp_path / "export",
    VideoTextModel(
      config, params, tokenizer, {"trained": True} | frozen, sampling
    ),
    tokenizer=(GOLDENS / "bert" / "tokenizer.json").read_bytes(),
    card="",
  )
  loaded = exported.load(tmp_path / "export")
  assert loaded.tokenizer.vocabulary == tokenizer.vocabulary
  again = warm_start.get_config(f"video={tmp_path / 'export'}")
  assert again.model.video.to_dict() == dataclasses.asdict(config.video)
  longer = dataclasses.replace(config, num_frames=8, scan=False)
  folders = dict.fromkeys(("video", "text"), str(tmp_path / "export"))
  given = (tmp_path / "export" / "tokenizer.model").read_bytes()
  begun, rows = start.start(fresh_params(longer), longer, folders, given)
  ours = begun["video_encoder"]["spatial"]["block_0"]["mlp"]["in"]["kernel"]
  theirs = params["video_encoder"]["spatial"]["blocks"]["mlp"]["in"]["kernel"]
  np.testing.assert_array_equal(ours, theirs[0])
  (row,) = (row for row in rows if row.status == "interpolated")
  assert row.name == "video_encoder/time_position"
  assert row.detail == "2 instants to 4"
  position = np.asarray(begun["video_encoder"]["time_position"])[:, 0]
  before = np.asarray(params["video_encoder"]["time_position"])[:, 0]
  np.testing.assert_allclose(
    position[1], 0.75 * before[0] + 0.25 * before[1], atol=1e-6
  )
  assert not any(row.status == "new" for row in rows)
