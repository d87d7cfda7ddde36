"""The sections of a configuration: their checks and what is built from them.

configs/base.py has every key with its default and why. What a key may hold is
declared here, or, for the keys of a part that is used without a configuration,
on that part's own dataclass: ModelConfig, Objective, Sampling. `check` is one
loop over those fields; the functions below it hand plain arguments on.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from jax.sharding import Mesh

from calince_jax import fields, old_formats
from calince_jax.data.input import mismatch_kinds
from calince_jax.data.input.sampling import Mix, Sampling
from calince_jax.data.tokenizer import Vocabulary
from calince_jax.errors import UserError
from calince_jax.fields import MAY_CHANGE, Check, OneOf, Range
from calince_jax.losses import contrastive, nce_kernel, tiled_nce
from calince_jax.losses.objective import Objective
from calince_jax.losses.tiled_nce import Tiling
from calince_jax.models.cali_nce import ModelConfig
from calince_jax.runtime import run_folder, sharding

KERNELS = {"xla": None, "pallas": nce_kernel}
LARGEST_DENSE = 2**26  # bytes of the similarities on each device, for `auto`


def _are_rules(value):
  return (
    fields.is_list(value)
    and len(value) > 0
    and all(
      fields.is_list(rule)
      and len(rule) == 2
      and all(isinstance(part, str) for part in rule)
      and _is_pattern(rule[0])
      for rule in value
    )
  )


def _is_pattern(text):
  try:
    re.compile(text)
  except (re.error, OverflowError, RecursionError):
    return False
  return True


def _are_multipliers(value):
  return fields.is_list(value) and all(
    fields.is_list(pair)
    and len(pair) == 2
    and isinstance(pair[0], str)
    and _is_pattern(pair[0])
    and type(pair[1]) in (int, float)
    and 0 <= pair[1] <= 1e6
    for pair in value
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alarms:
  """`config.alarms`: when training warns; 0 turns a warning off."""

  loss_spike: Annotated[float, Range("[0, 1e9]")]
  effective_sample_share: Annotated[float, Range("[0, 1]")]
  no_learning_steps: Annotated[int, Range("[0, 1e9]")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Sampling):
  """`config.data`: which data sets, and how they are sampled."""

  datasets: Annotated[str, MAY_CHANGE]
  weights: str
  split: str
  text_length: Annotated[int, Range("[3, 65536]")]  # begin, a word, end
  cache: Annotated[bool, MAY_CHANGE]
  max_bad_fraction: Annotated[float, Range("[0, 1]"), MAY_CHANGE]
  mismatch: Annotated[float, Range("[0, 1)")]
  mismatch_kind: Annotated[str, OneOf(tuple(mismatch_kinds.KINDS))]
  mismatch_seed: Annotated[int, Range("[0, 2147483647]")]
  confidences: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Similarities:
  """`config.similarities`: how the loss walks the N x N similarities."""

  form: Annotated[str, OneOf(("auto", "dense", "tiled")), MAY_CHANGE]
  tile: Annotated[int, Range("[1, 1e6]"), MAY_CHANGE]
  matmul_dtype: Annotated[str, OneOf(tiled_nce.MATMUL_DTYPES)]
  max_saved_bytes: Annotated[int, Range("[0, 1e15]"), MAY_CHANGE]
  kernel: Annotated[str, OneOf(tuple(KERNELS)), MAY_CHANGE]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """`config.optimizer`: AdamW, its learning rate, and the moving average."""

  learning_rate: Annotated[float, Range("(0, 100]")]
  warmup_share: Annotated[float, Range("[0, 1)")]
  weight_decay: Annotated[float, Range("[0, 100]")]
  max_grad_norm: Annotated[float, Range("(0, 1e9]")]
  b1: Annotated[float, Range("[0, 1)")]
  b2: Annotated[float, Range("[0, 1)")]
  ema_decay: Annotated[float, Range("[0, 1)")]
  multipliers: Annotated[
    tuple,
    Check(_are_multipliers, "pairs of a regular expression and a number >= 0"),
  ]
  layer_decay: Annotated[float, Range("(0, 1]")]
  trained_blocks: Annotated[int, Range("[0, 1000]")]
  frozen: Annotated[
    str,
    Check(
      lambda value: isinstance(value, str) and _is_pattern(value),
      "a regular expression, or empty",
    ),
  ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
  """`config.init`: folders of weights that a run starts from."""

  video: str
  text: str
  model: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharding:
  """`config.sharding`: how parameters are laid out over the devices."""

  model_parallel: Annotated[int, Range("[1, 1e6]")]
  slices: Annotated[int, Range("[0, 1e6]")]
  rules: Annotated[
    tuple,
    Check(_are_rules, "pairs of a regular expression and a rule"),
  ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A whole configuration."""

  seed: Annotated[int, Range("[0, 2147483647]")]
  batch_size: Annotated[int, Range("[1, 1e9]")]
  grad_cache_chunks: Annotated[int, Range("[1, 1e6]"), MAY_CHANGE]
  total_steps: Annotated[int, Range("[1, 1e9]")]
  log_every: Annotated[int, Range("[1, 1e9]"), MAY_CHANGE]
  checkpoint_every: Annotated[int, Range("[1, 1e9]"), MAY_CHANGE]
  keep_checkpoints: Annotated[int, Range("[1, 1e6]"), MAY_CHANGE]
  max_bad_steps: Annotated[int, Range("[1, 1e9]")]
  stall_seconds: Annotated[float, Range("[0, 1e9]"), MAY_CHANGE]
  alarms: Annotated[Alarms, MAY_CHANGE]
  evaluate_every: Annotated[int, Range("[0, 1e9]"), MAY_CHANGE]
  evaluate_splits: Annotated[str, MAY_CHANGE]
  data: Data
  model: ModelConfig
  init: Init
  objective: Objective
  similarities: Similarities
  optimizer: Optimizer
  sharding: Annotated[Sharding, MAY_CHANGE]


def check(config: Any, where: str = "config") -> None:
  """Checks every key of a configuration, before anything is made of it.

  Args:
    config: nested dicts, of a config file or of a run's config.json.
    where: stands before the key in a message.

  Raises:
    UserError: a key is missing or unknown, or a value is of another type or
      out of its range.
  """
  fields.check(Config, config, where)


def read_run(workdir: str) -> dict[str, Any]:
  """The configuration of a run of this format or an older one, checked.

  Raises:
    UserError: there is no run, or its config.json is damaged, of a newer
      format, or says what no configuration can.
  """
  config = old_formats.upgrade_config(*run_folder.read_document(workdir))
  check(config, f"{workdir}/config.json: config")
  return config


def keys_that_may_change() -> list[str]:
  """Keys and sections that may differ between the parts of one run."""

  def walk(kind, prefix):
    for name, annotation in fields.annotations(kind).items():
      section = fields.section(annotation)
      if MAY_CHANGE in fields.marks(annotation):
        yield prefix + name
      elif isinstance(section, type):
        yield from walk(section, f"{prefix}{name}.")

  return list(walk(Config, ""))


# ---------------------------------------------------------------- builders


def model_config(
  config: Mapping[str, Any], vocabulary: Vocabulary
) -> ModelConfig:
  """The shape of the model, from `config.model` and `config.data`."""
  data = config["data"]
  values = config["model"] | {
    name: data[name] for name in ("num_frames", "image_size", "text_length")
  }
  values |= {
    "vocab_size": vocabulary.size,
    "mask_id": vocabulary.mask_id,
    "control_ids": vocabulary.control_ids,
  }
  return _model("config.model", values)


def model_from_dict(values: Mapping[str, Any], where: str) -> ModelConfig:
  """The model that an export's config.json describes.

  Args:
    values: `dataclasses.asdict` of a ModelConfig, read from JSON.
    where: names the file, for messages.

  Raises:
    UserError: a field is missing or unknown, or a value does not fit.
  """
  fields.check(ModelConfig, values, where, derived=True)
  sections = fields.annotations(Data)
  for name in ("num_frames", "image_size", "text_length"):
    fields.check_value(sections[name], values[name], f"{where}.{name}")
  return _model(where, values)


def _model(where, values):
  def section(name):
    kind = fields.section(fields.annotations(ModelConfig)[name])
    given = {
      key: tuple(value) if fields.is_list(value) else value
      for key, value in values[name].items()
    }
    return kind.choose(given, f"{where}.{name}")(**given)

  return _checked(
    where,
    lambda: ModelConfig(
      **values
      | {name: section(name) for name in ("video", "text")}
      | {name: tuple(values[name]) for name in ("control_ids", "classes")}
    ),
  )


def objective(
  config: Mapping[str, Any], tiling: Tiling | None = None
) -> Objective:
  """The mix of losses, from `config.objective`."""
  return _checked(
    "config.objective",
    lambda: Objective(
      total_steps=config["total_steps"], tiling=tiling, **config["objective"]
    ),
  )


def tiling(config: Mapping[str, Any], mesh: Mesh) -> Tiling | None:
  """How the loss walks the similarities, from `config.similarities`.

  Returns:
    None for the dense N x N.

  Raises:
    UserError: a value that does not fit.
  """
  settings = Similarities(**config["similarities"])
  N, form = config["batch_size"], settings.form
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
      axis=sharding.batch_axes(mesh) if N % mesh.size else mesh.axis_names,
      tile=settings.tile,
      matmul_dtype=settings.matmul_dtype,
      max_saved_bytes=settings.max_saved_bytes,
      kernel=KERNELS[settings.kernel],
    )
    each = N // tiling.num_devices
    side = min(tiling.tile, each)
    if tiling.kernel is not None:
      tiling.kernel.check(side, config["model"]["embedding_dim"])
      if each % side:
        raise ValueError(f"tile={side} must divide a device's {each} pairs")
    return tiling

  return _checked("config.similarities", make)


def grad_cache_chunks(config: Mapping[str, Any], mesh: Mesh) -> int:
  """In how many chunks a batch is encoded; UserError where it does not fit."""
  chunks, pairs = config["grad_cache_chunks"], config["batch_size"]
  each = pairs // sharding.batch_ways(mesh)
  if each % chunks:
    raise UserError(
      f"config.grad_cache_chunks={chunks} must divide the {each} pairs that"
      f" each device has of config.batch_size={pairs}"
    )
  return chunks


def sampling(config: Mapping[str, Any]) -> Sampling:
  """How clips become arrays, from `config.data`."""
  return _checked(
    "config.data",
    lambda: Sampling(
      **{name: config["data"][name] for name in fields.annotations(Sampling)}
    ),
  )


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


def _checked(where, make):
  """`make()`; an error names the section that a wrong value stands in."""
  try:
    return make()
  except (ValueError, TypeError) as error:
    if isinstance(error, UserError) and str(error).startswith("config."):
      raise  # it names its own section
    raise UserError(f"{where}: {error}") from error
