"""Towers of published weights compute what transformers computes with them.

tests/goldens/make_towers.py made the folders: small models with random weights,
and their own outputs.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY_MODEL, fresh_params
from safetensors.numpy import load_file

from calince_jax.models import i3d
from calince_jax.models.cali_nce import TEXT_TOWERS, VIDEO_TOWERS
from calince_jax.warm_start import convert, start
from calince_jax.warm_start.architectures import tower_settings
from configs import base

GOLDENS = Path(__file__).parent.parent / "goldens" / "towers"
IMAGES = ("vit", "dinov2", "siglip", "clip")
TEXTS = ("bert", "distilbert", "clip")


def video_tower(folder, **changes):
  values = base.frame_vit().to_dict() | tower_settings(folder, "video")
  return VIDEO_TOWERS["frame_vit"](**values | changes)


def text_tower(folder, **changes):
  known = tower_settings(folder, "text")
  values = base.OTHER_TEXT_TOWERS[known["name"]]().to_dict() | known
  return TEXT_TOWERS[known["name"]](**values | changes)


def model(folder, **changes):
  """A model for the towers that a golden folder has."""
  settings = {"num_frames": 3, "image_size": 24, "embedding_dim": 12}
  settings["vocab_size"] = {"clip": 40}.get(folder.name, 18)
  if folder.name in IMAGES:
    settings["video"] = video_tower(folder)
  else:
    settings["video"] = video_tower(GOLDENS / "vit")
  if folder.name in TEXTS:
    settings["text"] = text_tower(folder)
  return dataclasses.replace(TINY_MODEL, **settings | changes)


def warm(config, **folders):
  tokenizer = b""
  if folders.get("text"):
    tokenizer = (Path(folders["text"]) / "tokenizer.json").read_bytes()
  return start.start(
    fresh_params(config),
    config,
    {"video": "", "text": ""} | {k: str(v) for k, v in folders.items()},
    tokenizer,
  )


@functools.cache
def program(config, method):
  built = config.build()
  return jax.jit(
    lambda params, *args: built.apply({"params": params}, *args, method=method)
  )


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("scan", [True, False])
def test_images_are_encoded_as_by_transformers(name, scan):
  folder = GOLDENS / name
  config = model(folder, scan=scan)
  params, rows = warm(config, video=folder)
  expected = load_file(folder / "expected.safetensors")
  out = program(config, "encode_video")(params, expected["video"])
  B, T = expected["video"].shape[:2]
  wanted = expected["frames"].reshape(B, T, -1).mean(axis=1)
  np.testing.assert_allclose(out["feature"], wanted, atol=1e-4, rtol=1e-4)
  if "tokens" in expected:
    np.testing.assert_allclose(
      out["tokens"].reshape(expected["tokens"].shape),
      expected["tokens"],
      atol=1e-4,
      rtol=1e-4,
    )
  if name == "clip":
    projected = expected["projected_frames"].reshape(B, T, -1).mean(axis=1)
    np.testing.assert_allclose(out["projected"], projected, atol=1e-4)
  new = {row.name for row in rows if row.status == "new"}
  assert new == {
    "clip": {"video_encoder/patch_embedding/bias"},
  }.get(name, {"video_projection/kernel"})


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_encoded_as_by_transformers(name):
  folder = GOLDENS / name
  config = model(folder)
  params, rows = warm(config, text=folder)
  expected = load_file(folder / "expected.safetensors")
  mask = expected["mask"]
  out = program(config, "encode_text")(params, expected["ids"], mask)
  if name == "clip":
    for ours, theirs in (("feature", "feature"), ("projected", "projected")):
      np.testing.assert_allclose(out[ours], expected[theirs], atol=1e-4)
  else:
    np.testing.assert_allclose(
      np.asarray(out["tokens"])[mask],
      expected["tokens"][mask],
      atol=1e-4,
      rtol=1e-4,
    )
  detail = {row.name: row.detail for row in rows}
  assert "the first 8 of 12 rows" in detail["text_encoder/position"]


@pytest.mark.parametrize("name", ["siglip", "dinov2"])
def test_an_image_tower_inflated_is_the_same_at_first(name):
  """Of clips whose two frames of a tubelet are alike; whatever time does."""
  folder = GOLDENS / name
  hidden = {"siglip": 24, "dinov2": 32}[name]
  video = VIDEO_TOWERS["vit"](
    name="vit",
    size=f"16x2x2x{hidden}",
    temporal_depth=1,
    tubelet=(2, 8),
    pooling="mean",
    pixels="scaled",
  )
  config = model(folder, video=video, num_frames=6)
  params, rows = warm(config, video=folder)
  expected = load_file(folder / "expected.safetensors")
  clip = expected["video"]
  B, T = clip.shape[:2]
  encode = program(config, "encode_video")
  twice = encode(params, np.repeat(clip, 2, axis=1))
  tokens = expected["tokens"].reshape(B, T, -1, 16)
  if name == "siglip":  # a class token takes part in the others' attention
    np.testing.assert_allclose(
      twice["tokens"].reshape(tokens.shape), tokens, atol=1e-4, rtol=1e-4
    )
    wanted = tokens.mean(axis=(1, 2))
    np.testing.assert_allclose(twice["feature"], wanted, atol=1e-4, rtol=1e-4)
  backwards = encode(params, np.repeat(clip[:, ::-1], 2, axis=1))
  np.testing.assert_allclose(twice["feature"], backwards["feature"], atol=1e-5)
  status = {row.name: row.status for row in rows}
  kernel = "video_encoder/patch_embedding/kernel"
  assert status[kernel] == "inflated"
  assert status["video_encoder/time_position"] == "new"
  assert not params["video_encoder"]["time_position"].any()
  other = {"siglip": "pooling/query", "dinov2": "class_token"}[name]
  assert status[other] == "left out"


def test_positions_are_interpolated_in_space():
  folder = GOLDENS / "dinov2"
  config = model(folder, image_size=48, num_frames=2)
  params, rows = warm(config, video=folder)
  (row,) = (row for row in rows if row.status == "interpolated")
  assert row.detail == "3 x 3 patches to 6 x 6"
  before = load_file(folder / "model.safetensors")
  before = before["embeddings.position_embeddings"][0]
  position = np.asarray(params["video_encoder"]["position"])
  np.testing.assert_array_equal(position[0], before[0])  # the class token's
  # Twice as fine: the four in a patch are about it, and their mean is near it.
  fine = position[1:].reshape(3, 2, 3, 2, 16).mean(axis=(1, 3)).reshape(9, 16)
  assert np.abs(fine - before[1:]).max() < 0.5 * np.abs(before[1:]).max()
  assert np.corrcoef(fine.ravel(), before[1:].ravel())[0, 1] > 0.9


def test_batch_norms_become_part_of_convolutions(rng):
  """relu((conv(x) - mean) / sqrt(variance + 1e-3) + offset), as I3D's."""
  arrays = {
    "weight": rng.normal(size=(1, 1, 1, 3, 4)),
    "mean": rng.normal(size=4),
    "variance": rng.uniform(0.1, 2, size=4),
    "offset": rng.normal(size=4),
  }
  arrays = {name: np.float32(value) for name, value in arrays.items()}

  class Alike:
    """Every convolution has these arrays."""

    def take(self, name):
      return arrays[name.rsplit(".", 1)[1]]

  converted = convert.convert(Alike(), "i3d", "video", None)
  assert len(converted) == 2 * (3 + 9 * 6)
  unit = {
    leaf: converted[f"Mixed_4d/Branch_3_Conv3d_0b_1x1/{leaf}"]
    for leaf in ("kernel", "bias")
  }
  x = np.float32(rng.normal(size=(2, 1, 2, 2, 3)))
  ours = i3d.Convolution(4, 1, 1).apply({"params": unit}, x)
  y = x.astype(np.float64) @ arrays["weight"][0, 0, 0]
  y = (y - arrays["mean"]) / np.sqrt(arrays["variance"] + 1e-3)
  wanted = np.maximum(y + arrays["offset"], 0)
  np.testing.assert_allclose(ours, wanted, atol=1e-5)
