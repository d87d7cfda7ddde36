"""A trained model: encodes videos and texts, and rates pairs.

model = calince_jax.load("DIR")              # what export wrote
v = model.encode_video(clips)                # uint8 [B, T, H, W, 3]
t = model.encode_text(["a dog runs", ...])
v @ t.T                                      # cosines
model.correspondence_score(clips, texts)     # does text i fit clip i?
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calince_jax.data.input.sampling import Sampling, sample_crop, sample_frames
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError
from calince_jax.losses import calibration
from calince_jax.models.cali_nce import ModelConfig


class VideoTextModel:
  """Two encoders and a correspondence head; numpy in, numpy out.

  Attributes:
    config: the ModelConfig.
    params: the parameter tree.
    tokenizer: of the captions.
    calibration: {"trained": whether the head was trained} and what
      losses/calibration.py::inference_calibration returns.
    sampling: how clips of other sizes and lengths are brought into shape.
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
    """Args: see the class. exported.py and from_run.py make one from files."""
    self.config, self.params, self.tokenizer = config, params, tokenizer
    self.calibration, self.sampling = calibration, sampling
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
    """Encodes clips: uint8 [B, T, H, W, 3] -> float32 [B, D], L2-normalised.

    Clips of another length or size than the model's are sampled uniformly in
    time, cropped to the central square, and resized.

    Raises:
      UserError: not uint8 [B, T, H, W, 3].
    """
    return np.asarray(self._encode_video(video)["embedding"])

  def encode_text(self, texts: Sequence[str]) -> np.ndarray:
    """Encodes B texts: float32 [B, D], L2-normalised.

    Raises:
      UserError: a text is empty, or `texts` is one string.
    """
    return np.asarray(self._encode_text(texts)["embedding"])

  def logits(self, video: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The correspondence head's logit g(v_i, t_i) of each pair, float32 [B].

    Raises:
      UserError: the numbers of clips and texts differ, or the model was trained
        without the head.
    """
    self.check_head()
    check_pairs(video, texts)
    outputs = self._encode_video(video), self._encode_text(texts)
    return np.asarray(self.pair_logits(*outputs))

  def check_head(self) -> None:
    """UserError if the model was trained without the correspondence head."""
    if not self.calibration["trained"]:
      raise UserError(
        "this model was trained without a correspondence head;"
        " compare encode_video and encode_text"
      )

  def correspondence_score(
    self, video: np.ndarray, texts: Sequence[str]
  ) -> np.ndarray:
    """s = sigmoid(g(v_i, t_i)) of each pair, float32 [B] in (0, 1).

    Raises:
      UserError: see `logits`.
    """
    return np.asarray(jax.nn.sigmoid(self.logits(video, texts)))

  def confidence(self, video: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """P(text i belongs to clip i), were it a pair of the training data.

    The posterior of the density ratio (losses/density_ratio.py) with the noise
    rate and the scorer that the model was trained with; a model without a head
    ranks by the cosine.

    Returns:
      float32 [B] in [0, 1].

    Raises:
      UserError: the numbers of clips and texts differ.
    """
    check_pairs(video, texts)
    video, text = self._encode_video(video), self._encode_text(texts)
    outputs = {"cosine": (video["embedding"] * text["embedding"]).sum(axis=-1)}
    if self.calibration["trained"]:
      outputs["head"] = self.pair_logits(video, text)
    return np.asarray(
      calibration.inference_confidence(self.calibration, outputs)[1]
    )

  def class_probability(self, video: np.ndarray) -> np.ndarray:
    """P(class | clip) by the fine-tuned classifier, float32 [B, C].

    The names of the C classes are `config.classes`.

    Raises:
      UserError: the model has no classifier, or see `encode_video`.
    """
    if not self.config.classes:
      raise UserError(
        "this model has no classifier; python -m calince_jax.finetune trains"
        " one"
      )
    logits = self._encode_video(video)["class_logits"]
    return np.asarray(jax.nn.softmax(logits))

  def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The token ids of B texts, int32 [B, L], and a bool mask [B, L]."""
    return self.tokenizer.encode(as_texts(texts), self.config.text_length)

  def _encode_text(self, texts):
    return self.text_outputs(*self.tokenize(texts))

  def _encode_video(self, video):
    return self.video_outputs(self._fit(as_clips(video)))

  def _fit(self, video):
    """Samples, crops and resizes clips to the model's own shape."""
    _, T, H, W, _ = video.shape
    frames = sample_frames(self.sampling, T, None)
    y, x, h, w = sample_crop(self.sampling, W, H, None)
    video = video[:, frames, y : y + h, x : x + w]
    S = self.config.image_size
    if (h, w) == (S, S):
      return jnp.asarray(video)
    shape = (*video.shape[:2], S, S, 3)
    video = jax.image.resize(video.astype(jnp.float32), shape, "linear")
    return jnp.round(video.clip(0, 255)).astype(jnp.uint8)


def as_clips(video: Any) -> np.ndarray:
  """Clips as uint8 [B, T, H, W, 3], each of at least one frame and pixel.

  Raises:
    UserError: they are anything else.
  """
  wanted = "video must be uint8 [B, T, H, W, 3]"
  try:
    video = np.asarray(video)
  except ValueError:
    raise UserError(
      f"{wanted}: the clips given differ in length or size; encode them one by"
      " one"
    ) from None
  if video.dtype != np.uint8 or video.ndim != 5 or video.shape[-1] != 3:
    given = f"{video.dtype} {list(video.shape)}"
    raise UserError(f"{wanted}, not {given}")
  if 0 in video.shape:
    raise UserError(
      f"{wanted} of at least one clip, frame and pixel, not {list(video.shape)}"
    )
  return video


def as_texts(texts: Any) -> list[str]:
  """At least one text, as a list; UserError for anything else."""
  if isinstance(texts, str):
    raise UserError("texts must be a list of str, not one str")
  if not isinstance(texts, (Sequence, np.ndarray)):
    kind = type(texts).__name__
    raise UserError(f"texts must be a list of str, not a {kind}")
  texts = list(texts)
  for n, text in enumerate(texts):
    if not isinstance(text, str):
      kind = type(text).__name__
      raise UserError(f"texts must be a list of str; number {n} is a {kind}")
  if not texts:
    raise UserError("texts is an empty list; give at least one")
  return [str(text) for text in texts]


def check_pairs(video: Any, texts: Any) -> None:
  """UserError unless there are as many texts as clips."""
  clips, words = len(as_clips(video)), len(as_texts(texts))
  if clips != words:
    raise UserError(f"{clips} clips and {words} texts: not pairs")
