"""From a configuration to plain arguments; only entry points import this."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from calince_jax import config_checks
from calince_jax.data.input.sampling import Mix, Sampling
from calince_jax.errors import UserError
from calince_jax.losses import contrastive, nce_kernel
from calince_jax.losses.objective import Objective
from calince_jax.losses.tiled_nce import Tiling
from calince_jax.models.cali_nce import CaliNCE, ModelConfig
from calince_jax.runtime import sharding
from calince_jax.training import optimizer as optimizer_lib
from calince_jax.training import step as train_step


def model_config(config: Mapping[str, Any], vocab_size: int) -> ModelConfig:
  """The shape of the model, from `config.model` and `config.data`."""
  data = config["data"]
  model = {**config["model"], "tubelet": tuple(config["model"]["tubelet"])}
  return _checked(
    "config.model",
    lambda: _validated(
      ModelConfig(
        num_frames=data["num_frames"],
        image_size=data["image_size"],
        text_length=data["text_length"],
        vocab_size=vocab_size,
        **model,
      )
    ),
  )


def objective(config: Mapping[str, Any]) -> Objective:
  """The mix of losses, from `config.objective`; shares become steps."""
  fields = dict(config["objective"])
  fields["scorer"] = fields.pop("score")
  fields["mask_duplicates"] = fields.pop("mask_repeats")
  for name in ("warmup", "ramp"):
    share = fields.pop(f"{name}_share")
    fields[f"{name}_steps"] = round(share * config["total_steps"])
  return _checked("config.objective", lambda: Objective(**fields))


SIMILARITIES = ("auto", "dense", "tiled")
KERNELS = {"xla": None, "pallas": nce_kernel}
LARGEST_DENSE = 2**26  # bytes of the similarities on each device, for `auto`


def tiling(config: Mapping[str, Any], mesh: Mesh) -> Tiling | None:
  """How the loss walks the similarities, from `config.similarities`.

  Returns:
    None for the dense N x N.

  Raises:
    UserError: a value that does not fit.
  """
  choices, N = config["similarities"], config["batch_size"]
  for name, known in (("form", SIMILARITIES), ("kernel", list(KERNELS))):
    if choices[name] not in known:
      raise UserError(
        f"config.similarities.{name}={choices[name]!r} is unknown; choose one"
        f" of {list(known)}"
      )
  form = choices["form"]
  if form == "auto":
    small = 4 * N * N // mesh.size <= LARGEST_DENSE
    tileable = (
      config["objective"]["contrastive"] in contrastive.LOSSES_FROM_SUMS
    )
    form = "dense" if small or not tileable else "tiled"
  if form == "dense":
    return None

  def make():
    tiling = Tiling(
      mesh=mesh,
      # All devices work on it, those of one model too, where they can.
      axis="data" if N % mesh.size else mesh.axis_names,
      tile=choices["tile"],
      matmul_dtype=choices["products"],
      max_saved_bytes=choices["keep"],
      kernel=KERNELS[choices["kernel"]],
    )
    each = N // tiling.num_devices
    side = min(tiling.tile, each)
    if tiling.kernel is not None:
      tiling.kernel.check(side, config["model"]["embedding_dim"])
      if each % side:
        raise ValueError(f"tile={side} must divide a device's {each} pairs")
    return tiling

  return _checked("config.similarities", make)


def micro_batches(config: Mapping[str, Any], mesh: Mesh) -> int:
  """In how many parts a batch is encoded; UserError where it does not fit."""
  parts, pairs = config["micro_batches"], config["batch_size"]
  each = pairs // mesh.shape["data"]
  if parts < 1 or each % parts:
    raise UserError(
      f"config.micro_batches={parts} must divide the {each} pairs that each"
      f" device has of config.batch_size={pairs}"
    )
  return parts


def sampling(config: Mapping[str, Any]) -> Sampling:
  """How clips become arrays, from `config.data`."""
  names = [field.name for field in dataclasses.fields(Sampling)]
  fields = {name: config["data"][name] for name in names}
  return _checked("config.data", lambda: Sampling(**fields))


def optimizer(
  config: Mapping[str, Any],
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer and its learning rate, from `config.optimizer`."""
  fields = dict(config["optimizer"])
  del fields["ema_decay"]  # the training step's
  schedule = _checked(
    "config.optimizer",
    lambda: optimizer_lib.learning_rate_schedule(
      fields.pop("learning_rate"),
      config["total_steps"],
      round(fields.pop("warmup_share") * config["total_steps"]),
    ),
  )
  return optimizer_lib.make_optimizer(schedule, **fields), schedule


@dataclasses.dataclass(frozen=True)
class Training:
  """What a run is made of; arrays come from `start` and `step`."""

  model: CaliNCE
  objective: Objective
  schedule: optax.Schedule  # the learning rate
  abstract: Any  # the shapes of the state
  layout: Any  # the shardings of the state
  start: Callable  # seed -> state
  step: Callable  # (state, batch) -> (state, metrics)


def training(
  config: Mapping[str, Any], mesh: Mesh, *, vocab_size: int, num_pairs: int
) -> Training:
  """The model and its compiled step on a mesh; nothing is computed yet.

  Args:
    config: of the run.
    mesh: see runtime/sharding.py.
    vocab_size: of the tokenizer.
    num_pairs: every `pair_index` is below it.

  Raises:
    UserError: a value that does not fit.
  """
  sharding.check_batch_size(config["batch_size"], mesh)
  model = model_config(config, vocab_size).build()
  tx, schedule = optimizer(config)
  init = functools.partial(train_step.init_state, model, tx, num_pairs)
  abstract = jax.eval_shape(init, config["seed"])
  layout = sharding.shardings(abstract, mesh, config["sharding"]["rules"])
  mix = _checked(
    "config.similarities",
    lambda: dataclasses.replace(objective(config), tiling=tiling(config, mesh)),
  )
  step = train_step.make_train_step(
    model,
    tx,
    mix,
    ema_decay=config["optimizer"]["ema_decay"],
    micro_batches=micro_batches(config, mesh),
    mesh=mesh,
  )
  return Training(
    model=model,
    objective=mix,
    schedule=schedule,
    abstract=abstract,
    layout=layout,
    start=jax.jit(init, out_shardings=layout),
    step=train_step.shard_train_step(step, layout, mesh),
  )


def check_numbers(config: Mapping[str, Any]) -> None:
  """UserError where a value does not fit its key, see config_checks.py."""
  config_checks.check(config)


def data_mix(config: Mapping[str, Any]) -> tuple[list[str], list[float]]:
  """The folders and weights of `config.data`.

  Raises:
    UserError: there is no folder, or there are other than as many weights.
  """
  folders = [f for f in config["data"]["datasets"].split(",") if f]
  if not folders:
    raise UserError(
      "no data: name a prepared folder with --config.data.datasets=DIR"
    )
  try:
    weights = [float(w) for w in config["data"]["weights"].split(",")]
  except ValueError as error:
    raise UserError(f"config.data.weights: {error}") from error
  if len(weights) != len(folders):
    raise UserError(
      f"config.data.weights has {len(weights)} weights for {len(folders)}"
      " data sets"
    )
  _checked("config.data.weights", lambda: Mix(weights))
  return folders, weights


def common_tokenizer(folders: Sequence[str]) -> Path:
  """The tokenizer file of the folders; UserError where they differ."""
  paths = [Path(folder) / "tokenizer.model" for folder in folders]
  contents = {path.read_bytes() for path in paths}
  if len(contents) > 1:
    raise UserError(
      f"{', '.join(folders)} have different tokenizers; prepare the others"
      f" with --tokenizer={paths[0]}"
    )
  return paths[0]


def _validated(model: ModelConfig) -> ModelConfig:
  model.build()
  t, p = model.tubelet
  if model.num_frames % t or model.image_size % p:
    raise ValueError(
      f"num_frames={model.num_frames} and image_size={model.image_size} cannot"
      f" be cut into tubelets of {t} frames of {p} x {p} pixels"
    )
  return model


def _checked(where, make):
  """`make()`; what is wrong with a value is said with its place."""
  try:
    return make()
  except (ValueError, TypeError) as error:
    raise UserError(f"{where}: {error}") from error


def as_dict(model: ModelConfig) -> dict[str, Any]:
  """For a JSON file; `model_from_dict` is the way back."""
  return dataclasses.asdict(model)


def model_from_dict(fields: Mapping[str, Any]) -> ModelConfig:
  """Strict: unknown and missing fields are a UserError."""
  known = {field.name for field in dataclasses.fields(ModelConfig)}
  if set(fields) != known:
    wrong = sorted(set(fields) ^ known)
    raise UserError(f"config.json: unknown or missing model fields {wrong}")
  for name, value in fields.items():
    where = f"config.json: {name}"
    if name == "vocab_size":
      config_checks.check_number(int, "[5, 1e9]", value, where)
    else:
      section = "data" if f"data.{name}" in config_checks.KEYS else "model"
      config_checks.check_value(f"{section}.{name}", value, where)
  return _checked(
    "config.json",
    lambda: _validated(
      ModelConfig(**{**fields, "tubelet": tuple(fields["tubelet"])})
    ),
  )
