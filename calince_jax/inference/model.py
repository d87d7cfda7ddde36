"""A trained model to use: encode videos and texts, score pairs.

model = calince_jax.load("DIR")              # what export wrote
v = model.encode_video(clips)                # uint8 [B, T, H, W, 3]
t = model.encode_text(["a dog runs", ...])
v @ t.T                                      # similarities
model.score(clips, texts)                    # does text i fit clip i?
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from calince_jax import config as config_lib
from calince_jax import config_checks
from calince_jax.data.input.sampling import Sampling, sample_crop, sample_frames
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError, check_choice
from calince_jax.losses import calibration, density_ratio
from calince_jax.models.cali_nce import ModelConfig, init_params
from calince_jax.runtime.sharding import path_name

FORMAT_VERSION = 2
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.model"
CALIBRATION = {"trained", "score", "noise_rate", "head", "cosine", "posterior"}


class VideoTextModel:
  """Two encoders and the correspondence score; numpy in, numpy out.

  Attributes:
    config: the ModelConfig.
    calibration: {"trained": has the head been trained} and what
      losses/calibration.py::freeze says, to turn scores into confidence.
    video_outputs, text_outputs, pair_logits, held_out_logits: the jitted
      methods of the model (models/cali_nce.py) on arrays of its own shapes.
    logit_scale: the learned inverse temperature.
  """

  def __init__(
    self,
    config: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    calibration: dict[str, Any],
    sampling: Sampling,
  ):
    """Use `load`, or evaluate's way from a run's folder.

    Args:
      config: the shape of the model.
      params: the parameter tree.
      tokenizer: of the captions.
      calibration: see the class.
      sampling: how clips of other sizes and lengths are brought into shape.
    """
    self.config, self.calibration = config, calibration
    self.params, self._tokenizer, self._sampling = params, tokenizer, sampling
    model = config.build()

    def run(method):
      def apply(params, *args):
        return model.apply({"params": params}, *args, method=method)

      return jax.jit(apply)

    self.video_outputs = functools.partial(run(model.encode_video), self.params)
    self.text_outputs = functools.partial(run(model.encode_text), self.params)
    self.pair_logits = functools.partial(run(model.correspondence), self.params)
    self.held_out_logits = functools.partial(run(model.held_out), self.params)
    self.logit_scale = float(run(model.logit_scale)(self.params))

  def encode_video(self, video: np.ndarray) -> np.ndarray:
    """float32 [B, D], L2-normalised, from uint8 [B, T, H, W, 3].

    Clips of another length or size than the model's are sampled uniformly in
    time, cut to the square in the middle, and resized.

    Raises:
      UserError: not uint8 [B, T, H, W, 3].
    """
    return np.asarray(self._encode_video(video)["embedding"])

  def encode_text(self, texts: Sequence[str]) -> np.ndarray:
    """float32 [B, D], L2-normalised, of B texts; UserError on an empty one."""
    return np.asarray(self._encode_text(texts)["embedding"])

  def logits(self, video: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The correspondence head's logit of each pair, float32 [B].

    Raises:
      UserError: there are other than as many texts as clips, or the model was
        trained without the head.
    """
    self.check_score()
    check_pairs(video, texts)
    outputs = self._encode_video(video), self._encode_text(texts)
    return np.asarray(self.pair_logits(*outputs))

  def check_score(self) -> None:
    """UserError if the model was trained without the correspondence head."""
    if not self.calibration["trained"]:
      raise UserError(
        "this model was trained without a correspondence head;"
        " compare encode_video and encode_text"
      )

  def score(self, video: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The correspondence score s(v_i, t_i) in (0, 1), float32 [B]."""
    return np.asarray(jax.nn.sigmoid(self.logits(video, texts)))

  def confidence(self, video: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """P(text i belongs to clip i), were it a pair of the training data: [B].

    The posterior of the density ratio (losses/density_ratio.py) with the noise
    rate and the score that the model was trained with; without a head, of the
    cosine.
    """
    check_pairs(video, texts)
    video, text = self._encode_video(video), self._encode_text(texts)
    scores = {"cosine": (video["embedding"] * text["embedding"]).sum(axis=-1)}
    if self.calibration["trained"]:
      scores["head"] = self.pair_logits(video, text)
    return np.asarray(
      calibration.frozen_confidence(self.calibration, scores)[1]
    )

  def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """int32 ids and bool mask [B, L]."""
    if isinstance(texts, str):
      raise UserError("texts must be a list of str, not one str")
    return self._tokenizer.encode(texts, self.config.text_length)

  def _encode_text(self, texts):
    return self.text_outputs(*self.tokenize(texts))

  def _encode_video(self, video):
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 5 or video.shape[-1] != 3:
      raise UserError(
        "video must be uint8 [B, T, H, W, 3], not"
        f" {video.dtype} {list(video.shape)}"
      )
    return self.video_outputs(self._fit(video))

  def _fit(self, video):
    _, T, H, W, _ = video.shape
    frames = sample_frames(self._sampling, T, None)
    y, x, h, w = sample_crop(self._sampling, W, H, None)
    video = video[:, frames, y : y + h, x : x + w]
    S = self.config.image_size
    if (h, w) == (S, S):
      return jnp.asarray(video)
    shape = (*video.shape[:2], S, S, 3)
    video = jax.image.resize(video.astype(jnp.float32), shape, "linear")
    return jnp.round(video.clip(0, 255)).astype(jnp.uint8)


def check_pairs(video: np.ndarray, texts: Sequence[str]) -> None:
  """UserError unless there are as many texts as clips."""
  if len(video) != len(texts):
    raise UserError(f"{len(video)} clips and {len(texts)} texts: not pairs")


def flatten(params: Any) -> dict[str, np.ndarray]:
  """A parameter tree as {path: array}, as safetensors wants it."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


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
  try:
    document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    version = document["format_version"]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    what = f"{type(error).__name__}: {error}"
    raise UserError(f"{folder / CONFIG} is damaged: {what}") from error
  if version != FORMAT_VERSION:
    raise UserError(
      f"{folder} is of format {version}; this calince_jax reads format"
      f" {FORMAT_VERSION}"
    )
  check_document(document, str(folder / CONFIG))
  config = config_lib.model_from_dict(document["model"])
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


def check_document(document: dict[str, Any], where: str) -> None:
  """UserError unless an exported config.json says all that `load` reads."""
  sections = ("model", "calibration", "preprocessing")
  missing = [s for s in sections if not isinstance(document.get(s), dict)]
  if missing:
    raise UserError(f"{where} lacks {missing}")
  for section, known in (
    ("preprocessing", {field.name for field in dataclasses.fields(Sampling)}),
    ("calibration", CALIBRATION),
  ):
    wrong = sorted(set(document[section]) ^ known)
    if wrong:
      raise UserError(f"{where}: unknown or missing in {section!r}: {wrong}")
  for name, value in document["preprocessing"].items():
    config_checks.check_value(f"data.{name}", value, f"{where}: {name}")
  _check_calibration(document["calibration"], where)


def _check_calibration(found: dict[str, Any], where: str) -> None:
  """UserError unless it is of the form that calibration.freeze gives it."""
  lengths = {"head": 2, "cosine": 2, "posterior": density_ratio.BINS}
  fits = isinstance(found["trained"], bool) and all(
    isinstance(found[name], list) and len(found[name]) == length
    for name, length in lengths.items()
  )
  if fits:
    numbers = [x for name in lengths for x in found[name]]
    numbers.append(found["noise_rate"])
    fits = all(type(x) in (int, float) for x in numbers)
  if not fits:
    raise UserError(
      f"{where}: 'calibration' is not as export writes it; export it anew"
    )
  check_choice(f"{where}: score", found["score"], calibration.SCORES)


def strict_params(
  config: ModelConfig, flat: dict[str, np.ndarray], where: str
) -> Any:
  """The parameter tree of `flat`, which must fit the model exactly.

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
    said = [
      f"{len(names)} {kind}: {', '.join(names[:5])}"
      for kind, names in problems.items()
      if names
    ]
    raise UserError(f"{where} does not fit the model: {'; '.join(said)}")
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jnp.asarray(flat[path_name(path)]), expected
  )
