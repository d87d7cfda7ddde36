"""A trained model goes on with other clips, and learns to name their class."""

import json
import shutil

import numpy as np
import pytest
from conftest import TINY_CONFIG

from calince_jax import evaluate, export, finetune, train
from calince_jax.errors import UserError
from calince_jax.inference import exported
from calince_jax.runtime import checkpoint
from calince_jax.training import setup
from configs import finetune_recognition, finetune_retrieval

STEPS = 12
# The clips are longer and larger than those of `trained_run`.
CHANGES = {
  **{k: v for k, v in TINY_CONFIG.items() if not k.startswith("model.")},
  "total_steps": STEPS,
  "checkpoint_every": 6,
  "log_every": 4,
  "data.num_frames": 8,
  "data.image_size": 48,
  "data.text_length": None,
  "optimizer.learning_rate": 1e-2,
  "optimizer.ema_decay": 0.5,
}


def config_of(config, dataset, **changes):
  values = {"data.datasets": str(dataset)} | CHANGES | changes
  config.update_from_flattened_dict(values)
  config.model.dtype = "float32"
  return config


def params_of(workdir, step):
  parts = checkpoint.restore_parts(str(workdir), step, ["params"])[1]
  return exported.flatten(parts["params"])


@pytest.fixture(scope="module")
def classifier(trained_run, tiny_dataset, tmp_path_factory):
  """The folder of a run that learns to tell left from right."""
  workdir = tmp_path_factory.mktemp("finetuned") / "run"
  config = config_of(finetune_recognition.get_config("partial"), tiny_dataset)
  config.optimizer.trained_blocks = 1
  finetune.finetune(train.Options(str(workdir), config), str(trained_run))
  return workdir


def test_all_weights_but_those_of_the_classifier_are_loaded(classifier):
  lines = (classifier / "warm_start.csv").read_text().splitlines()[1:]
  rows = dict(line.split(",")[1::-1] for line in lines)
  new = {name for name, status in rows.items() if status == "new"}
  assert new == {"classifier/kernel", "classifier/bias"}
  assert rows["video_encoder/time_position"] == "interpolated"
  assert rows["video_encoder/space_position"] == "interpolated"
  assert rows["correspondence_heads_0/hidden_0/kernel"] == "loaded"


def test_what_is_frozen_stays_and_the_rest_learns(classifier, trained_run):
  loaded = checkpoint.restore_parts(str(trained_run), None, ["ema_params"])[1]
  before = exported.flatten(loaded["ema_params"])
  after = params_of(classifier, STEPS)
  for name, value in before.items():
    if name.startswith("video_encoder/") or name.endswith("_centre"):
      continue
    np.testing.assert_array_equal(after[name], value, err_msg=name)
  name = "video_encoder/patch_embedding/kernel"
  np.testing.assert_array_equal(after[name], before[name])
  name = "video_encoder/pooling/query"
  assert np.abs(after[name] - before[name]).max() > 1e-4
  rows = (classifier / "metrics.jsonl").read_text().splitlines()
  first, last = json.loads(rows[0]), json.loads(rows[-1])
  assert last["classification"] < first["classification"]


def test_its_classes_are_evaluated_and_exported(classifier, tmp_path):
  result = evaluate.evaluate(
    evaluate.Options(str(classifier), task="classification")
  )["classification"]
  assert result["metrics"]["top5"] == 100 and result["chance"]["top1"] == 50
  low, high = result["intervals"]["top1"]
  assert low <= result["metrics"]["top1"] <= high
  folder = export.export(export.Options(str(classifier), str(tmp_path / "out")))
  model = exported.load(folder)
  assert model.config.classes == ("left", "right")
  video = np.zeros((3, 8, 48, 48, 3), np.uint8)
  np.testing.assert_allclose(
    model.class_probability(video).sum(axis=1), 1, rtol=1e-5
  )


def test_it_resumes_to_the_same_bits_without_its_source(
  classifier, tiny_dataset, tmp_path
):
  workdir = shutil.copytree(classifier, tmp_path / "run")
  shutil.rmtree(workdir / "checkpoints" / str(STEPS))
  config = config_of(finetune_recognition.get_config("partial"), tiny_dataset)
  config.optimizer.trained_blocks = 1
  document = json.loads((workdir / "config.json").read_text())
  source = document["config"]["init"]["model"]
  finetune.finetune(train.Options(str(workdir), config), source)
  expected = params_of(classifier, STEPS)
  for name, value in params_of(workdir, STEPS).items():
    np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("nowhere", "is not the folder of a run"),
    ("tiny_dataset", "is not the folder of a run"),
  ],
)
def test_another_folder_is_refused(
  source, message, tiny_dataset, request, tmp_path
):
  if source == "tiny_dataset":
    source = str(request.getfixturevalue(source))
  config = config_of(finetune_retrieval.get_config(), tiny_dataset)
  with pytest.raises(UserError, match=message):
    finetune.completed(config, str(tmp_path / "run"), source)


def test_retrieval_keeps_the_shape_of_the_model(
  trained_run, tiny_dataset, tmp_path
):
  changes = {"data.num_frames": None, "data.image_size": None}
  config = config_of(finetune_retrieval.get_config(), tiny_dataset, **changes)
  made = finetune.completed(config, str(tmp_path / "run"), str(trained_run))
  assert (made.data.num_frames, made.data.image_size) == (4, 32)
  assert made.data.text_length == 12 and made.model.video.size == "mu"
  assert made.model.classes == () and made.init.model == str(trained_run)


def test_classes_that_no_clip_has_are_refused(tiny_dataset):
  config = config_of(finetune_recognition.get_config(), tiny_dataset)
  config.model.classes = ("up", "down")
  with pytest.raises(UserError, match="are no labels of .*'left', 'right'"):
    setup.open_data(config.to_dict())


def test_another_model_cannot_be_asked_for():
  finetune.check_overrides(["model.remat", "data.num_frames"])
  with pytest.raises(UserError, match="the model is that of --from"):
    finetune.check_overrides(["model.embedding_dim"])
