"""The towers of published architectures: their parts, masks and devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_MODEL, fresh_params
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calince_jax import config as config_lib
from calince_jax.errors import UserError
from calince_jax.models import transformer
from calince_jax.models.cali_nce import dummy_batch
from calince_jax.runtime import hlo, sharding
from configs import base

PAIRS = 56  # 7 on each device: no width of a tower is a multiple
SIZE = "32x2x2x48"


def settings(kind, name, **changes):
  known = base.OTHER_VIDEO_TOWERS if kind == "video" else base.OTHER_TEXT_TOWERS
  values = known[name]().to_dict()
  values |= ({"size": SIZE} if "size" in values else {}) | changes
  towers = config_lib.fields.annotations(config_lib.ModelConfig)[kind]
  return config_lib.fields.section(towers).kinds[name](**values)


def model(**towers):
  return dataclasses.replace(TINY_MODEL, **towers)


FRAMES = settings("video", "frame_vit", temporal_depth=1, layer_scale=True)
FRAMES = dataclasses.replace(FRAMES, input_norm=True)


@functools.cache
def program(config, method):
  built = config.build()
  return jax.jit(
    lambda params, *args: built.apply({"params": params}, *args, method=method)
  )


def texts(rng, pairs=8):
  ids = jnp.asarray(rng.integers(5, 40, (pairs, 8)), jnp.int32)
  lengths = np.resize([8, 3, 5, 8, 4, 2, 6, 7], pairs)
  return ids, jnp.asarray(np.arange(8) < lengths[:, None])


@pytest.mark.parametrize("text", ["bert", "clip_text"])
@pytest.mark.parametrize("task", ["masked_text", "caption"])
def test_every_predictive_task_has_what_it_needs(text, task):
  config = model(
    video=FRAMES, text=settings("text", text), predictive_task=task
  )
  streams = dict.fromkeys(("params", "negatives", "masking"), jax.random.key(0))
  out, _ = jax.eval_shape(
    lambda: config.build().init_with_output(
      streams, dummy_batch(config, 4), num_negatives=1
    )
  )
  assert out["video"].shape == out["text"].shape == (4, 16)
  assert out["prediction"]["logits"].shape == (4, 8, 40)


def test_i3d_ends_at_an_eighth_of_the_frames():
  """And at cells of 32 pixels, each rounded up."""
  config = model(video=settings("video", "i3d"))
  video = jnp.zeros((2, 9, 40, 32, 3), jnp.uint8)
  tower = config.video.build({"remat": "full"})
  (feature, tokens), variables = jax.eval_shape(
    lambda: tower.init_with_output(jax.random.key(0), video)
  )
  assert feature.shape == (2, 1024) and tokens.shape == (2, 2 * 2 * 1, 1024)
  # With the 410,000 of its layer of classes, some 12.7 million.
  count = sum(x.size for x in jax.tree.leaves(variables["params"]))
  assert count == 12_279_984


def test_time_begins_as_the_mean_over_frames(rng):
  """And then it matters in which order the frames are."""
  video = jnp.asarray(rng.integers(0, 256, (2, 4, 32, 32, 3)), jnp.uint8)
  config = model(video=FRAMES)
  params = fresh_params(config)
  tower = params["video_encoder"]
  tower["time_position"] *= 50
  learned = program(config, "encode_video")
  assert (
    np.abs(
      learned(params, video)["feature"]
      - learned(params, video[:, ::-1])["feature"]
    ).max()
    > 1e-3
  )
  out = jax.tree.map(jnp.zeros_like, tower["temporal_out"])
  begun = params | {"video_encoder": tower | {"temporal_out": out}}
  single = learned(begun, jnp.repeat(video[:, :1], 4, axis=1))["feature"]
  frames = [
    learned(begun, jnp.repeat(video[:, t : t + 1], 4, axis=1))["feature"]
    for t in range(1, 4)
  ]
  np.testing.assert_allclose(
    learned(begun, video)["feature"], sum(frames, single) / 4, atol=1e-5
  )


def test_the_last_layer_of_time_begins_at_zero():
  config = model(video=FRAMES)
  tower = config.video.build({})
  video = jnp.zeros((1, 2, 16, 16, 3), jnp.uint8)
  params = jax.jit(tower.init)(jax.random.key(0), video)["params"]
  assert not params["temporal_out"]["kernel"].any()
  assert params["class_token"].any()


def test_clip_text_looks_back_alone_and_ends_at_the_last_token(rng):
  config = model(text=settings("text", "clip_text"))
  params = fresh_params(config)
  ids, mask = texts(rng)
  run = program(config, "encode_text")
  plain = run(params, ids, mask)
  changed = run(params, ids.at[:, 4].add(-1), mask)
  np.testing.assert_allclose(
    plain["tokens"][:, :4], changed["tokens"][:, :4], atol=1e-6
  )
  assert np.abs(plain["tokens"][0, 4:] - changed["tokens"][0, 4:]).max() > 1e-3
  last = np.asarray(mask).sum(axis=1) - 1
  np.testing.assert_allclose(
    plain["feature"],
    np.asarray(plain["tokens"])[np.arange(8), last],
    atol=1e-6,
  )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_bert_does_not_see_padding(rng, pooling):
  config = model(text=settings("text", "bert", pooling=pooling))
  params = fresh_params(config)
  assert "norm" not in params["text_encoder"]["transformer"]
  ids, mask = texts(rng)
  run = program(config, "encode_text")
  plain = run(params, ids, mask)
  other = run(params, jnp.where(mask, ids, 9), mask)
  np.testing.assert_allclose(plain["feature"], other["feature"], atol=1e-6)
  real = np.asarray(mask)[..., None]
  tokens = np.asarray(plain["tokens"])
  wanted = {
    "cls": tokens[:, 0],
    "mean": (tokens * real).sum(1) / real.sum(1),
  }[pooling]
  np.testing.assert_allclose(plain["feature"], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["video", "text"])
def test_devices_share_the_batch_and_change_no_number(rng, kind):
  """No device holds activations of more than its own clips or texts."""
  bert = settings("text", "bert")
  if kind == "video":
    shape = (PAIRS, 2, 16, 16, 3)
    inputs = (jnp.asarray(rng.integers(0, 256, shape), jnp.uint8),)
    built = FRAMES.build({"remat": "full"})
    wanted = FRAMES.build({})
  else:
    inputs = texts(rng, PAIRS)
    built = bert.build(40, 8, {"remat": "full"})
    wanted = bert.build(40, 8, {})
  params = jax.jit(wanted.init)(jax.random.key(0), *inputs)["params"]

  def loss_and_grad(module):
    def loss(params, *inputs):
      feature, tokens = module.apply({"params": params}, *inputs)
      return (feature * jnp.arange(32)).sum() + (tokens**2).sum()

    return jax.value_and_grad(loss)

  mesh = sharding.make_mesh(jax.devices())

  def on_mesh(params, *inputs):
    with sharding.context_of(mesh):
      return loss_and_grad(built)(params, *inputs)

  layout = sharding.shardings(params, mesh, [(".*", "fsdp")], smallest=64)
  rows = NamedSharding(mesh, P("data"))
  compiled = (
    jax.jit(on_mesh, in_shardings=(layout, *[rows] * len(inputs)))
    .lower(params, *inputs)
    .compile()
  )
  got = compiled(
    *jax.device_put((params, *inputs), (layout, *[rows] * len(inputs)))
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3),
    got,
    jax.jit(loss_and_grad(wanted))(params, *inputs),
  )
  for one in hlo.read_program(compiled.as_text()).collectives:
    for _, shape in one.shapes:
      assert len(shape) < 3 or shape[0] % PAIRS, (one.kind, shape)


@pytest.mark.parametrize(
  "kind, name, changes, message",
  [
    ("video", "frame_vit", {"size": "32x2x3x48"}, "divide the width"),
    ("video", "frame_vit", {"size": "XXL"}, "WIDTHxDEPTHxHEADSxHIDDEN"),
    ("video", "frame_vit", {"class_token": False}, "needs class_token=True"),
    ("video", "frame_vit", {"pixel_std": (0.5, 0, 0.5)}, "three numbers above"),
    ("text", "bert", {"pooling": "last"}, "cls"),
    ("text", "clip_text", {"activation": "relu"}, "quick_gelu"),
  ],
)
def test_wrong_settings_are_named(kind, name, changes, message):
  with pytest.raises(ValueError, match=message):
    settings(kind, name, **changes)


def test_a_frame_that_cannot_be_cut_is_named():
  with pytest.raises((UserError, ValueError), match="patches of 7 x 7"):
    model(video=settings("video", "frame_vit", patch=7))


def test_a_size_has_a_name_or_is_written_out():
  own = transformer.size("384x12x6x1536")
  small = transformer.size("S")
  assert (own.width, own.depth, own.num_heads) == (
    small.width,
    small.depth,
    small.num_heads,
  )
  assert own.hidden == 1536 and small.hidden is None
