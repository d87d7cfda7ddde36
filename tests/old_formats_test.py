"""Configurations and exports of older formats are read as today's."""

from conftest import tiny_config

from calince_jax import config as config_lib
from calince_jax import old_formats


def early_format_4(config):
  """A configuration as format 4 wrote it first."""
  del config["init"]
  for key in ("multipliers", "layer_decay", "frozen"):
    del config["optimizer"][key]
  return config


def format_3(config):
  """A configuration as format 3 wrote it."""
  config = early_format_4(config)
  del config["data"]["resize"], config["data"]["colour_jitter"]
  del config["model"]["centre"]
  del config["data"]["mismatch_kind"], config["alarms"]["no_learning_steps"]
  config["data"]["flip"] = config["data"]["flip"] != "never"
  return config


def format_2(config):
  """A configuration as format 2 wrote it."""
  config = format_3(config)
  del config["sharding"]["slices"], config["objective"]["trust"]
  config["micro_batches"] = config.pop("grad_cache_chunks")
  objective, similarities = config["objective"], config["similarities"]
  objective["score"] = objective.pop("scorer")
  objective["mask_repeats"] = objective.pop("mask_duplicates")
  similarities["products"] = similarities.pop("matmul_dtype")
  similarities["keep"] = similarities.pop("max_saved_bytes")
  model = config["model"]
  video, text = model.pop("video"), model.pop("text")
  model |= {
    "video_size": video["size"],
    "text_size": text["size"],
    "temporal_depth": video["temporal_depth"],
    "tubelet": video["tubelet"],
    "pooling": video["pooling"],
  }
  return config


def format_1(config):
  """As format 1 did, without what it did not know."""
  config = format_2(config)
  for key in ("micro_batches", "stall_seconds", "alarms", "similarities"):
    del config[key]
  del config["data"]["max_bad_fraction"]
  del config["objective"]["mask_repeats"]
  return config


def test_older_configurations_are_those_of_today(tiny_dataset):
  today = tiny_config(tiny_dataset).to_dict()
  # What all did.
  today["data"] |= {"resize": "antialiased", "flip": "always"}
  today["objective"]["trust"] = "schedule"
  today["alarms"]["no_learning_steps"] = 0
  today["model"]["video"]["pixels"] = "scaled"
  today["model"]["centre"] = False
  today["optimizer"]["multipliers"] = []  # JSON has no tuples
  changes = {"data.flip": "always"}
  for version, older in ((1, format_1), (2, format_2), (3, format_3)):
    old = older(tiny_config(tiny_dataset, changes=changes).to_dict())
    if version == 3:
      old["objective"]["trust"] = "schedule"
      old["model"]["video"]["pixels"] = "scaled"
    read = old_formats.upgrade_config(version, old)
    config_lib.check(read)
    if version == 1:  # what it did then
      assert read["similarities"].pop("form") == "dense"
      read["similarities"]["form"] = today["similarities"]["form"]
    assert read == today
  assert old_formats.upgrade_config(4, today) == today


def test_what_an_older_configuration_says_counts(tiny_dataset):
  old = format_2(tiny_config(tiny_dataset).to_dict())
  old["micro_batches"], old["model"]["pooling"] = 2, "mean"
  old["objective"]["score"] = "cosine"
  read = old_formats.upgrade_config(2, old)
  assert read["grad_cache_chunks"] == 2
  assert read["objective"]["scorer"] == "cosine"
  assert read["model"]["video"]["pooling"] == "mean"
  assert read["model"]["text"]["pooling"] == "mean"


def test_what_is_of_no_form_is_left_for_the_check():
  for broken in ({}, {"model": 3, "objective": [1], "similarities": None}):
    for version in (1, 2, 3):
      old_formats.upgrade_config(version, broken)
      old_formats.upgrade_export(version, broken)
