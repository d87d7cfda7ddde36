"""Configurations and exports of older formats are read as today's."""

from conftest import tiny_config

from calince_jax import config as config_lib
from calince_jax import old_formats


def format_2(config):
  """A configuration as format 2 wrote it."""
  del config["sharding"]["slices"], config["objective"]["trust"]
  config["micro_batches"] = config.pop("grad_cache_chunks")
  del config["model"]["centre"]
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
  # What both did.
  today["objective"]["trust"] = "schedule"
  today["model"]["video"]["pixels"] = "scaled"
  today["model"]["centre"] = False
  for version, older in ((1, format_1), (2, format_2)):
    old = older(tiny_config(tiny_dataset).to_dict())
    read = old_formats.upgrade_config(version, old)
    config_lib.check(read)
    if version == 1:  # what it did then
      assert read["similarities"].pop("form") == "dense"
      read["similarities"]["form"] = today["similarities"]["form"]
    assert read == today
  assert old_formats.upgrade_config(3, today) == today


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
    for version in (1, 2):
      old_formats.upgrade_config(version, broken)
      old_formats.upgrade_export(version, broken)
