"""Every configuration builds a train step, and a wrong one says so."""

import dataclasses
import importlib
import importlib.util
from pathlib import Path

import jax
import pytest

from benchmarks import plan_all
from calince_jax import config as config_lib
from calince_jax import fields
from calince_jax.config import Config
from calince_jax.data.tokenizer import Vocabulary
from calince_jax.errors import UserError
from calince_jax.losses.tiled_nce import Tiling
from calince_jax.models.cali_nce import ModelConfig, dummy_batch, init_params
from calince_jax.runtime import sharding, topologies
from calince_jax.training import setup
from calince_jax.training import step as train_step
from configs import base

CONFIGS = sorted(
  path
  for path in (Path(__file__).parent.parent / "configs").glob("*.py")
  if path.stem != "__init__"
)


def load(path, *argument):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*argument)


def step_shapes(config):
  """The shapes of a state and its metrics after one step, nothing computed."""
  model = config_lib.model_config(config, Vocabulary(1000)).build()
  tx, _ = setup.open_optimizer(config)
  step = train_step.make_train_step(
    model, tx, config_lib.objective(config), ema_decay=0.9
  )
  state = jax.eval_shape(lambda: train_step.init_state(model, tx, 8, 0))
  batch = dummy_batch(model.config, 8)
  return state, *jax.eval_shape(step, state, batch)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_train_step_of_every_config(path):
  config = load(path).to_dict()
  if path.stem.startswith("finetune"):  # what the model and the data complete
    assert config["data"]["num_frames"] is None
    config["data"] = base.get_config().data.to_dict()
    config["model"]["classes"] = ("one", "another")
  config_lib.check(config)
  config_lib.sampling(config)
  before, after, metrics = step_shapes(config)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(
    lambda x: (x.shape, x.dtype), after
  )
  assert metrics["loss"].shape == ()
  params = {x.dtype.name for x in jax.tree.leaves(before.params)}
  assert params == {"float32"}
  mesh = sharding.make_mesh(jax.devices())
  sharding.shardings(before, mesh, config["sharding"]["rules"])


@pytest.mark.parametrize("method", ["cali_nce", "cotrain", "infonce"])
def test_the_quickstart_takes_a_method(method):
  path = CONFIGS[0].with_name("quickstart.py")
  ours, named = load(path, method), load(path.with_name(f"{method}.py"))
  assert ours.objective.to_dict() == named.objective.to_dict()


def test_the_methods_differ_in_the_objective_alone():
  folder = CONFIGS[0].parent
  loaded = [
    load(folder / f"{name}.py").to_dict()
    for name in ("cali_nce", "cotrain", "infonce")
  ]
  objectives = [config.pop("objective") for config in loaded]
  # A second head is of use only where its score decides a weight.
  two_heads = [config["model"].pop("cross_fit") for config in loaded]
  assert two_heads == [True, False, False]
  assert loaded[0] == loaded[1] == loaded[2]
  assert objectives[0] != objectives[1] != objectives[2] != objectives[0]


def test_every_key_has_a_comment():
  lines = (CONFIGS[0].with_name("base.py")).read_text().splitlines()
  keys = ("  config.", "  tower.")
  for number, line in enumerate(lines):
    if line.startswith(keys) and "ConfigDict()" not in line:
      named = line.split("=")[0]
      above = number - 1
      # One comment may stand for a group of keys that it leads.
      while lines[above].startswith(keys) and "#" not in lines[above]:
        above -= 1
      assert "#" in line or "#" in lines[above], f"{named} has no comment"


def test_a_key_is_declared_in_two_places():
  """Its default in base.py; type, range, choices on one dataclass's field."""
  known = flatten(load(CONFIGS[0].with_name("base.py")).to_dict())
  declared = dict(fields.flatten(Config))
  assert sorted(declared) == sorted(known)
  base = CONFIGS[0].with_name("base.py").read_text()
  for key, value in known.items():
    assert base.count(f"  config.{key} =") == 1, key
    fields.check_value(declared[key], value, key)
  # No dataclass has a default of its own: base.py's are the only ones.
  for kind in settings_kinds(Config):
    for field in dataclasses.fields(kind):
      if field.name in fields.annotations(kind):
        assert field.default is dataclasses.MISSING, (kind, field.name)


def test_the_settings_of_other_towers_are_declared_in_two_places_too():
  for section, functions in (
    ("video", base.OTHER_VIDEO_TOWERS),
    ("text", base.OTHER_TEXT_TOWERS),
  ):
    towers = fields.section(fields.annotations(ModelConfig)[section])
    for name, function in functions.items():
      values = function().to_dict()
      assert values["name"] == name
      fields.check(towers.kinds[name], values, name)


def flatten(values, prefix=""):
  flat = {}
  for name, value in values.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def settings_kinds(kind):
  """The dataclass of a configuration and those of its sections."""
  yield kind
  for annotation in fields.annotations(kind).values():
    section = fields.section(annotation)
    if isinstance(section, fields.ByName):
      yield from section.kinds.values()
    elif section is not None:
      yield from settings_kinds(section)


def test_the_defaults_of_the_loss_alone_are_those_of_base():
  """tiled_nce.py is used without a configuration; both say the same."""
  config = load(CONFIGS[0].with_name("base.py")).to_dict()
  forced = config | {"similarities": config["similarities"] | {"form": "tiled"}}
  tiling = config_lib.tiling(forced, sharding.make_mesh(jax.devices()))
  alone = Tiling()
  for name in ("tile", "matmul_dtype", "max_saved_bytes", "kernel"):
    assert getattr(tiling, name) == getattr(alone, name)


def test_a_misspelt_key_is_an_error():
  config = load(CONFIGS[0].with_name("base.py"))
  with pytest.raises(AttributeError, match="batchsize"):
    config.batchsize = 3


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("model.head", "magic", "bilinear"),
    ("model.predictive_task", "magic", "masked_text"),
    ("model.text.pooling", "max", "mean"),
    ("model.video.name", "resnet", "vit"),
    ("model.remat", "some", "dots"),
    ("model.video.size", "XXL", "Ti"),
    ("model.dtype", "float8", "bfloat16"),
    ("objective.confidence", "trust", "posterior"),
    ("data.frames", "all", "uniform"),
    ("data.num_frames", 7, "tubelets"),
    ("data.image_size", 100, "tubelets"),
    ("optimizer.warmup_share", 1.5, "config.optimizer.warmup_share=1.5 must"),
    ("data.weights", "1,x", "weights"),
    ("data.weights", "1,2", "2 weights for 1"),
    ("data.datasets", "", "config.data.datasets"),
    ("batch_size", 0, "at least 1"),
    ("grad_cache_chunks", 3, "grad_cache_chunks=3 must divide the 32 pairs"),
    (
      "grad_cache_chunks",
      0,
      "grad_cache_chunks=0 must be a whole number, at least 1",
    ),
    ("similarities.form", "sparse", "tiled"),
    ("similarities.matmul_dtype", "float8", "bfloat16"),
    ("similarities.tile", 0, "tile=0"),
    ("similarities.kernel", "cuda", "pallas"),
  ],
)
def test_wrong_values_name_their_place_and_what_is_known(key, value, message):
  config = load(CONFIGS[0].with_name("base.py"))
  config.data.datasets = "somewhere"
  with config.unlocked():
    config.update_from_flattened_dict({key: value})
  config = config.to_dict()
  with pytest.raises(UserError, match=message):
    config_lib.check(config)
    config_lib.data_mix(config)
    config_lib.sampling(config)
    config_lib.model_config(config, Vocabulary(100))
    config_lib.objective(config)
    setup.open_optimizer(config)
    mesh = sharding.make_mesh(jax.devices())
    config_lib.grad_cache_chunks(config, mesh)
    config_lib.tiling(config | {"batch_size": 2**14}, mesh)


@pytest.mark.parametrize(
  "batch_size, contrastive, form, tiled",
  [
    (8192, "infonce", "auto", False),  # 32 MiB on each of 8 devices
    (16384, "infonce", "auto", True),
    (16384, "norton", "auto", False),
    (16384, "infonce", "dense", False),
    (16, "infonce", "tiled", True),
  ],
)
def test_the_similarities_are_tiled_where_they_are_large(
  batch_size, contrastive, form, tiled
):
  config = load(CONFIGS[0].with_name("base.py"))
  config.batch_size = batch_size
  config.objective.contrastive = contrastive
  config.similarities.form = form
  mesh = sharding.make_mesh(jax.devices(), 2)
  tiling = config_lib.tiling(config.to_dict(), mesh)
  assert (tiling is not None) == tiled
  if tiled:
    assert tiling.num_devices == 8


@pytest.mark.parametrize(
  "tile, message", [(100, "multiple of 64"), (192, "tile=192 must divide")]
)
def test_tiles_that_a_kernel_cannot_cut_are_named(tile, message):
  config = load(CONFIGS[0].with_name("base.py"))
  config.batch_size = 2**14
  config.similarities.kernel, config.similarities.tile = "pallas", tile
  with pytest.raises(UserError, match=f"config.similarities: .*{message}"):
    config_lib.tiling(config.to_dict(), sharding.make_mesh(jax.devices()))


def test_a_loss_that_needs_all_similarities_is_not_tiled():
  config = load(CONFIGS[0].with_name("base.py"))
  config.objective.contrastive = "norton"
  config.similarities.form = "tiled"
  with pytest.raises(UserError, match="'norton' has no tiling"):
    setup.compile_training(
      config.to_dict(),
      sharding.make_mesh(jax.devices()),
      vocabulary=Vocabulary(100),
      num_pairs=8,
    )


REAL = ("webvid", "webvid_large", "howto100m", "kinetics_titles")


@pytest.mark.parametrize("name", REAL)
def test_a_configuration_for_a_pod_is_what_its_header_says(name):
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config().to_dict()
  topology, slices = module.POD
  assert topologies.chip_of(topology) is not None
  assert f"--config=configs/{name}.py" in module.__doc__
  assert f"--topology={topology}" in module.__doc__
  model = config_lib.model_config(config, Vocabulary(32_000)).build()
  params = jax.tree.leaves(jax.eval_shape(lambda: init_params(model, 0)))
  millions = sum(x.size for x in params) / 1e6
  assert f"have {millions:.0f} million parameters" in module.__doc__
  # Clips and larger matrices are shared out evenly.
  in_slice = plan_all.device_count(topology)
  here, rest = divmod(config["batch_size"], in_slice * slices)
  assert rest == 0 and here % config["grad_cache_chunks"] == 0
  assert f"{here} clips on each chip" in module.__doc__
  for x in params:
    divided = any(size % in_slice == 0 for size in x.shape)
    assert divided or x.size < 2**18, x.shape
