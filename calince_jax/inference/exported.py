"""A model as a folder of its own: writes, checks and loads an export.

model.safetensors   the parameters
params/             the same parameters, as Orbax saves them
config.json         model, preprocessing, calibration
tokenizer.model     of the captions
README.md           the model card
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import load_file, save_file

from calince_jax import config as config_lib
from calince_jax import fields, old_formats
from calince_jax.data.input.sampling import Sampling
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError, check_choice
from calince_jax.files import atomic_folder
from calince_jax.inference.model import VideoTextModel
from calince_jax.losses import calibration, density_ratio
from calince_jax.models.cali_nce import ModelConfig, init_params
from calince_jax.runtime.sharding import path_name

FORMAT_VERSION = 4
READ_VERSIONS = (2, 3)
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PARAMS = "params"
TOKENIZER = "tokenizer.model"
CARD = "README.md"
CALIBRATION = {"trained", "scorer", "noise_rate", "head", "cosine", "posterior"}


# ------------------------------------------------------------------- writing


def check_free(folder: str | Path) -> None:
  """UserError if there is something of this name already."""
  if Path(folder).exists():
    raise UserError(
      f"{folder} exists already; choose another --out or delete it"
    )


def write(
  folder: str | Path, model: VideoTextModel, *, tokenizer: bytes, card: str
) -> None:
  """Writes an export whole, or nothing of this name.

  It is loaded again before it gets its name, and must compute the same.

  Args:
    folder: to make.
    model: what is exported.
    tokenizer: the content of its tokenizer's file.
    card: the model card, Markdown.

  Raises:
    UserError: `folder` exists already.
    RuntimeError: what was written gives other embeddings.
  """
  folder = Path(folder).resolve()  # Orbax wants an absolute path
  check_free(folder)
  with atomic_folder(folder) as partial:
    write_model(partial, model)
    (partial / TOKENIZER).write_bytes(tokenizer)
    (partial / CARD).write_text(card, encoding="utf-8")
    check_equal(model, load(partial))


def write_model(folder: Path, model: VideoTextModel) -> None:
  """Writes the parameters, twice, and config.json."""
  save_file(
    flatten(model.params), folder / WEIGHTS, metadata={"format": "flax"}
  )
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / PARAMS, model.params)
  document = {
    "format_version": FORMAT_VERSION,
    "model": dataclasses.asdict(model.config),
    "preprocessing": dataclasses.asdict(model.sampling),
    "calibration": model.calibration,
  }
  (folder / CONFIG).write_text(json.dumps(document, indent=2) + "\n")


def check_equal(model: VideoTextModel, loaded: VideoTextModel) -> None:
  """RuntimeError unless both give the same embeddings to the last bit."""
  c = model.config
  rng = np.random.default_rng(0)
  shape = (2, c.num_frames, c.image_size, c.image_size, 3)
  video = rng.integers(0, 256, shape, np.uint8)
  texts = ["one", "another"]
  for name, ours, theirs in (
    ("encode_video", model.encode_video(video), loaded.encode_video(video)),
    ("encode_text", model.encode_text(texts), loaded.encode_text(texts)),
  ):
    if not np.array_equal(ours, theirs):
      raise RuntimeError(f"the exported model's {name} differs from the run's")


def flatten(params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as {path: array}, as safetensors wants it."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


# ------------------------------------------------------------------- loading


def load(directory: str | Path) -> VideoTextModel:
  """Loads what `python -m calince_jax.export` wrote.

  Raises:
    UserError: a file is missing or damaged, or the weights are not exactly
      those of the model that config.json describes.
  """
  folder = Path(directory)
  for name in (CONFIG, WEIGHTS, TOKENIZER):
    if not (folder / name).is_file():
      raise UserError(f"{folder} is not an exported model: {name} is missing")
  document = read_document(folder / CONFIG)
  where = f"{folder / CONFIG}: model"
  config = config_lib.model_from_dict(document["model"], where)
  try:
    flat = load_file(folder / WEIGHTS)
  except Exception as error:  # safetensors raises a class of its own
    raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from error
  tokenizer = Tokenizer(folder / TOKENIZER)
  if tokenizer.vocab_size != config.vocab_size:
    raise UserError(
      f"{folder / TOKENIZER} has {tokenizer.vocab_size} pieces, but the model"
      f" was trained with {config.vocab_size}"
    )
  return VideoTextModel(
    config,
    strict_params(config, flat, str(folder / WEIGHTS)),
    tokenizer,
    document["calibration"],
    config_lib.sampling({"data": document["preprocessing"]}),
  )


def read_document(path: Path) -> dict[str, Any]:
  """The checked config.json of an export.

  Raises:
    UserError: it is damaged, of another format, or lacks what `load` reads.
  """
  try:
    document = json.loads(path.read_text(encoding="utf-8"))
    version = document["format_version"]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    what = f"{type(error).__name__}: {error}"
    raise UserError(f"{path} is damaged: {what}") from error
  if version not in READ_VERSIONS:
    raise UserError(
      f"{path.parent} is of format {version}; this calince_jax reads the"
      f" formats {list(READ_VERSIONS)}"
    )
  document = old_formats.upgrade_export(version, document)
  check_document(document, str(path))
  return document


def check_document(document: dict[str, Any], where: str) -> None:
  """UserError unless an exported config.json holds all that `load` reads."""
  sections = ("model", "calibration", "preprocessing")
  missing = [s for s in sections if not isinstance(document.get(s), dict)]
  if missing:
    raise UserError(f"{where} lacks {missing}")
  wrong = sorted(set(document["calibration"]) ^ CALIBRATION)
  if wrong:
    raise UserError(f"{where}: unknown or missing in 'calibration': {wrong}")
  fields.check(Sampling, document["preprocessing"], f"{where}: preprocessing")
  _check_calibration(document["calibration"], where)


def _check_calibration(frozen: dict[str, Any], where: str) -> None:
  """UserError unless it has the form of calibration.inference_calibration."""
  lengths = {"head": 2, "cosine": 2, "posterior": density_ratio.BINS}
  fits = isinstance(frozen["trained"], bool) and all(
    isinstance(frozen[name], list) and len(frozen[name]) == length
    for name, length in lengths.items()
  )
  if fits:
    numbers = [x for name in lengths for x in frozen[name]]
    numbers.append(frozen["noise_rate"])
    fits = all(type(x) in (int, float) for x in numbers)
  if not fits:
    raise UserError(
      f"{where}: 'calibration' is not as export writes it; run export again"
    )
  check_choice(f"{where}: scorer", frozen["scorer"], calibration.SCORERS)


def strict_params(
  config: ModelConfig, flat: dict[str, np.ndarray], where: str
) -> Any:
  """The parameter tree of `flat`, which must fit the model exactly.

  Args:
    config: of the model.
    flat: {path: array}, see `flatten`.
    where: named in the message.

  Raises:
    UserError: lists the missing, unexpected and misshapen parameters.
  """
  expected = jax.eval_shape(
    functools.partial(init_params, config.build(), seed=0)
  )
  shapes = {
    path_name(path): (leaf.dtype.name, leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected)
  }
  given = {name: (leaf.dtype.name, leaf.shape) for name, leaf in flat.items()}
  problems = {
    "missing": sorted(shapes.keys() - flat.keys()),
    "unexpected": sorted(flat.keys() - shapes.keys()),
    "misshapen": [
      f"{name} {given[name]}, not {shape}"
      for name, shape in shapes.items()
      if name in given and given[name] != shape
    ],
  }
  if any(problems.values()):
    listed = [
      f"{len(names)} {kind}: {', '.join(names[:5])}"
      for kind, names in problems.items()
      if names
    ]
    raise UserError(f"{where} does not fit the model: {'; '.join(listed)}")
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jnp.asarray(flat[path_name(path)]), expected
  )
