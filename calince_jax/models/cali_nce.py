"""The video-text model: two towers, their projections, and two heads.

video --> VideoViT --------> feature --> projection --> video [B, D]
                         |         |--> classifier (where there are classes)
              tokens ----+                                 |
                         |              correspondence head g(v, t)
text ---> TextTransformer|--> feature --> projection --> text [B, D]
                         |
                         +--> predictive head (3 tasks)
"""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from calince_jax import fields
from calince_jax.fields import DERIVED, MAY_CHANGE, ByName, Check, OneOf, Range
from calince_jax.models import heads, transformer
from calince_jax.models.activation_sharding import spread
from calince_jax.models.frame_vit import FrameViTSettings
from calince_jax.models.i3d import I3DSettings
from calince_jax.models.text import (
  BertSettings,
  ClipTextSettings,
  TextTransformerSettings,
)
from calince_jax.models.video_vit import VideoViTSettings

VIDEO_TOWERS = {
  "vit": VideoViTSettings,
  "frame_vit": FrameViTSettings,
  "i3d": I3DSettings,
}
TEXT_TOWERS = {
  "transformer": TextTransformerSettings,
  "bert": BertSettings,
  "clip_text": ClipTextSettings,
}

# ln 100: the temperature may not fall below 0.01 (CLIP).
MAX_LOG_LOGIT_SCALE = 4.6051702
PREDICTIVE_TASKS = ("masked_text", "caption", "latent")
LATENT_LOGIT_SCALE = 10.0


def _are_names(value):
  return (
    fields.is_list(value)
    and all(isinstance(name, str) and name for name in value)
    and len(set(value)) == len(value)
  )


def _are_ids(value):
  return fields.is_list(value) and all(
    type(part) is int and part >= 0 for part in value
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """The shape of a model: `config.model`; configs/base.py documents each key.

  Attributes:
    num_frames, image_size, text_length: of `config.data`.
    vocab_size: number of token ids of the tokenizer.
    mask_id: the tokenizer's id that hides a token from `masked_text`; None: it
      has none, and there is no such task.
    control_ids: its ids that are never predicted: padding, begin, end.
  """

  num_frames: Annotated[int, DERIVED]
  image_size: Annotated[int, DERIVED]
  text_length: Annotated[int, DERIVED]
  vocab_size: Annotated[int, Range("[5, 1e9]"), DERIVED]
  mask_id: Annotated[int | None, Range("[0, 1e9]"), DERIVED]
  control_ids: Annotated[
    tuple[int, ...], Check(_are_ids, "a list of token ids"), DERIVED
  ]
  video: Annotated[Any, ByName(VIDEO_TOWERS)]
  text: Annotated[Any, ByName(TEXT_TOWERS)]
  embedding_dim: Annotated[int, Range("[2, 65536]")]
  centre: bool
  dropout: Annotated[float, Range("[0, 1)")]
  dtype: Annotated[str, OneOf(("float32", "bfloat16"))]
  scan: bool
  remat: Annotated[str, OneOf(transformer.REMAT), MAY_CHANGE]
  logit_scale: Annotated[float, Range("(0, 100]")]
  logit_bias: Annotated[float | None, Range("[-1000, 1000]")]
  head: Annotated[str, OneOf(heads.HEADS)]
  head_hidden: Annotated[int, Range("[1, 65536]")]
  head_detached: bool
  cross_fit: bool
  predictive_task: Annotated[str, OneOf(PREDICTIVE_TASKS)]
  predictive_depth: Annotated[int, Range("[0, 1000]")]
  mask_rate: Annotated[float, Range("[0, 1]")]
  classes: Annotated[
    tuple[str, ...], Check(_are_names, "a list of different names")
  ]

  def __post_init__(self):
    fields.check_instance(self)
    self.video.check_clip(self.num_frames, self.image_size)
    if self.predictive_task == "masked_text" and self.mask_id is None:
      raise ValueError(
        "predictive_task='masked_text' hides words behind a mask token, and the"
        " tokenizer of the data has none; choose 'caption' or 'latent'"
      )
    if self.predictive_task == "latent" and self.num_frames % 2:
      raise ValueError(
        f"predictive_task='latent' halves a clip; num_frames="
        f"{self.num_frames} is odd"
      )

  def build(self) -> "CaliNCE":
    """The module."""
    return CaliNCE(self)


def _unit(x):
  """L2-normalised over the last axis, float32; 0 stays 0, without NaN."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt((x**2).sum(axis=-1, keepdims=True) + 1e-12)


def _embedding(projected, centre):
  """[B, D] about `centre` [D], L2-normalised."""
  if centre is not None:
    projected = projected - jax.lax.stop_gradient(centre)
  return spread(_unit(projected))


class CaliNCE(nn.Module):
  """See the picture at the top of this file."""

  config: ModelConfig

  def setup(self):
    c = self.config
    dtype = jnp.dtype(c.dtype)
    shared = {
      "dropout": c.dropout,
      "dtype": dtype,
      "scan": c.scan,
      "remat": c.remat,
    }
    self.video_encoder = c.video.build(shared)
    self.text_encoder = c.text.build(c.vocab_size, c.text_length, shared)
    self.video_projection = transformer.dense(c.embedding_dim, use_bias=False)
    self.text_projection = transformer.dense(c.embedding_dim, use_bias=False)
    if c.centre:  # running means, which training/step.py updates
      zeros = nn.initializers.zeros
      self.video_centre = self.param("video_centre", zeros, (c.embedding_dim,))
      self.text_centre = self.param("text_centre", zeros, (c.embedding_dim,))
    self.log_logit_scale = self.param(
      "log_logit_scale",
      lambda key: jnp.log(jnp.asarray(c.logit_scale, jnp.float32)),
    )
    if c.logit_bias is not None:
      self.learned_logit_bias = self.param(
        "logit_bias", nn.initializers.constant(c.logit_bias), ()
      )
    self.correspondence_heads = [
      heads.CorrespondenceHead(
        kind=c.head,
        hidden=c.head_hidden,
        num_heads=c.text.num_heads,
        dtype=dtype,
      )
      for _ in range(1 + c.cross_fit)
    ]
    if c.classes:
      self.classifier = transformer.dense(len(c.classes))
    if c.predictive_task == "latent":
      self.latent_predictor = transformer.MLP(2 * c.embedding_dim)
    else:
      self.predictive_decoder = heads.PredictiveDecoder(
        depth=c.predictive_depth,
        num_heads=c.text.num_heads,
        causal=c.predictive_task == "caption",
        dtype=dtype,
      )

  def encode_video(
    self, video: jax.Array, *, deterministic: bool = True
  ) -> dict[str, jax.Array]:
    """uint8 [B, T, H, W, 3] -> `embedding` [B, D], `feature`, `tokens`.

    All float32; the embedding is L2-normalised. `projected` [B, D] is the
    embedding before it is centred and normalised; `class_logits` [B, C] are
    those of `config.classes`, where there are any.
    """
    feature, tokens = self.video_encoder(video, deterministic=deterministic)
    projected = spread(self.video_projection(feature))
    centre = self.video_centre if self.config.centre else None
    encoded = {
      "embedding": _embedding(projected, centre),
      "projected": projected,
      "feature": feature,
      "tokens": tokens,
    }
    if self.config.classes:
      encoded["class_logits"] = spread(self.classifier(feature))
    return encoded

  def encode_text(
    self, ids: jax.Array, mask: jax.Array, *, deterministic: bool = True
  ) -> dict[str, jax.Array]:
    """int32, bool [B, L] -> as `encode_video`, and `mask`."""
    feature, tokens = self.text_encoder(ids, mask, deterministic=deterministic)
    return self._encoded_text(feature, tokens, mask)

  def _encoded_text(self, feature, tokens, mask):
    projected = spread(self.text_projection(feature))
    centre = self.text_centre if self.config.centre else None
    return {
      "embedding": _embedding(projected, centre),
      "projected": projected,
      "feature": feature,
      "tokens": tokens,
      "mask": mask,
    }

  def correspondence(
    self, video: dict[str, jax.Array], text: dict[str, jax.Array]
  ) -> jax.Array:
    """g(v_i, t_i) of new pairs, float32 [B], of what the encoders returned."""
    return self._heads(video, text).mean(axis=0)

  def held_out(
    self,
    video: dict[str, jax.Array],
    text: dict[str, jax.Array],
    pair_index: jax.Array,
  ) -> jax.Array:
    """g(v_i, t_i), float32 [B], of the head that was not trained on pair i."""
    logits = self._heads(video, text)
    return jnp.where(pair_index % 2 == 0, logits[0], logits[-1])

  def _heads(self, video, text, which=None):
    """float32 [heads, B]: of all heads, or of number `which` where there is."""
    if self.config.head_detached:
      video, text = jax.lax.stop_gradient((video, text))
    chosen = self.correspondence_heads
    if which is not None:
      chosen = [chosen[which % len(chosen)]]
    return jnp.stack([head(video, text) for head in chosen])

  def logit_scale(self) -> jax.Array:
    """float32 [], at most 100."""
    return jnp.exp(jnp.minimum(self.log_logit_scale, MAX_LOG_LOGIT_SCALE))

  def __call__(
    self,
    batch: dict[str, jax.Array],
    *,
    num_negatives: int,
    with_correspondence: bool = True,
    with_prediction: bool = True,
    deterministic: bool = True,
  ) -> dict[str, Any]:
    """What the objective needs of a batch.

    Args:
      batch: `video` uint8 [B, T, H, W, 3], `text_ids` int32 [B, L],
        `text_mask` bool [B, L], `pair_index` int32 [B]. B is the global batch
        under `jax.jit`.
      num_negatives: K, the uniform in-batch negatives of each video; at most
        B - 1 are there to be had.
      with_correspondence: run the correspondence head.
      with_prediction: run the predictive head.
      deterministic: no dropout.

    Returns:
      What `relate` returns; and, where asked for, `prediction`. Needs the
      random streams `negatives`, `masking` and, unless deterministic,
      `dropout`.
    """
    if with_prediction:
      batch = batch | {"masked": self.choose_masked(batch)}
    encoded = self.encode(
      batch, with_prediction=with_prediction, deterministic=deterministic
    )
    outputs = self.relate(
      encoded["video"],
      encoded["text"],
      batch["pair_index"],
      num_negatives=num_negatives,
      with_correspondence=with_correspondence,
    )
    if with_prediction:
      outputs["prediction"] = encoded["prediction"]
    return outputs

  def encode(
    self,
    batch: dict[str, jax.Array],
    *,
    with_prediction: bool,
    deterministic: bool,
  ) -> dict[str, Any]:
    """What needs no other pair: a part of a batch is encoded like the whole.

    Args:
      batch: see above, and `masked` of `choose_masked`.
      with_prediction: run the predictive head.
      deterministic: no dropout; else the stream `dropout` is needed.

    Returns:
      `video` and `text`, what `encode_video` and `encode_text` return as far
      as `relate` looks at it; where asked for, `prediction`, see
      losses/predictive.py; and `class_logits`, where there are classes.
    """
    video = self.encode_video(batch["video"], deterministic=deterministic)
    ids, mask = batch["text_ids"], batch["text_mask"]
    hidden = None
    if with_prediction and self.config.predictive_task == "masked_text":
      feature, tokens, hidden = self.text_encoder.with_hidden(
        ids,
        jnp.where(batch["masked"], self.config.mask_id, ids),
        mask,
        deterministic=deterministic,
      )
      text = self._encoded_text(feature, tokens, mask)
    else:
      text = self.encode_text(ids, mask, deterministic=deterministic)
    encoded = {"video": self._related(video), "text": self._related(text)}
    if with_prediction:
      encoded["prediction"] = self._predict(batch, video, hidden, deterministic)
    if self.config.classes:
      encoded["class_logits"] = video["class_logits"]
    return encoded

  def _related(self, encoded):
    """Without what `relate` does not look at; tokens are large."""
    names = ["projected"]
    if self.config.head == "fusion":
      names += [name for name in ("tokens", "mask") if name in encoded]
    return {name: encoded[name] for name in names}

  def _about_their_mean(self, encoded):
    """With the `embedding` of a whole batch, and the mean of `projected`.

    About the batch's own mean, embeddings cannot be one point, which they
    otherwise become where most of every clip and caption is alike.
    """
    projected = encoded["projected"]
    if not self.config.centre:
      return encoded | {"embedding": _embedding(projected, None)}, None
    # A pair that is not finite leaves the others as they are.
    finite = jnp.isfinite(projected).all(axis=1, keepdims=True)
    total = jnp.where(finite, projected, 0.0).sum(axis=0)
    mean = total / jnp.maximum(finite.sum(), 1)
    embedding = spread(_unit(projected - mean))
    return encoded | {"embedding": embedding}, jax.lax.stop_gradient(mean)

  def relate(
    self,
    video: dict[str, jax.Array],
    text: dict[str, jax.Array],
    pair_index: jax.Array,
    *,
    num_negatives: int,
    with_correspondence: bool,
  ) -> dict[str, Any]:
    """How the pairs of a whole batch stand to each other.

    Args:
      video: of `encode`, [B, ...] each, of the whole batch.
      text: of `encode`.
      pair_index: int32 [B].
      num_negatives: see above.
      with_correspondence: see above.

    Returns:
      `video`, `text` float32 [B, D]; `logit_scale` []; `logit_bias` [] if the
      model has one; `cosine` [B, 1 + K] of each given pair and of K negatives
      of its video; and, where asked for, of the same pairs the logits of the
      head that learns from pair i, `correspondence` [B, 1 + K], and of the head
      that does not, `held_out` [B, 1 + K]. Where `centre` is set also
      `video_centre` and `text_centre` [D], the batch's means. Needs the stream
      `negatives`.
    """
    video, video_centre = self._about_their_mean(video)
    text, text_centre = self._about_their_mean(text)
    outputs = {
      "video": video["embedding"],
      "text": text["embedding"],
      "logit_scale": self.logit_scale(),
    }
    if self.config.centre:
      outputs |= {"video_centre": video_centre, "text_centre": text_centre}
    if self.config.logit_bias is not None:
      outputs["logit_bias"] = self.learned_logit_bias
    return outputs | self._with_negatives(
      video, text, pair_index, num_negatives, with_correspondence
    )

  def _with_negatives(
    self, video, text, pair_index, num_negatives, with_correspondence
  ):
    """[B, 1 + K]: text i, then the texts of K other places, with video i.

    The batch is rolled by K different random distances, so that every text
    is as often a negative as it is a positive.

    With `cross_fit` one head learns from the given pairs of even index and
    scores those of odd index, the other the reverse: a head memorises wrong
    pairs, but not those that it is never given. The negatives are shared out.
    """
    B = video["embedding"].shape[0]
    distances = 1 + jax.random.permutation(self.make_rng("negatives"), B - 1)
    others = [text] + [
      jax.tree.map(lambda x, k=k: spread(jnp.roll(x, distances[k], 0)), text)
      for k in range(min(num_negatives, B - 1))
    ]
    v = video["embedding"]
    cosines = [(v * other["embedding"]).sum(axis=-1) for other in others]
    outputs = {"cosine": jnp.stack(cosines, axis=1)}
    if with_correspondence:
      given = self._heads(video, text)
      even, odd = given[0], given[-1]  # by the pairs that the head scores
      is_even = pair_index % 2 == 0
      negatives = [
        self._heads(video, other, k % 2)[0]
        for k, other in enumerate(others[1:])
      ]
      for name, first in (
        ("correspondence", jnp.where(is_even, odd, even)),
        ("held_out", jnp.where(is_even, even, odd)),
      ):
        outputs[name] = jnp.stack([first, *negatives], axis=1)
    return outputs

  def _predict(self, batch, video, hidden, deterministic):
    """`hidden`: the text tower's tokens of the words that are not masked."""
    task = self.config.predictive_task
    if task == "latent":
      return self._predict_latent(batch["video"], deterministic)
    ids, mask = batch["text_ids"], batch["text_mask"]
    if task == "masked_text":
      x, targets, chosen = hidden, ids, batch["masked"]
    else:  # caption: token n is predicted at the place of token n - 1
      x = self.text_encoder.embed(ids)
      targets = jnp.roll(ids, -1, axis=1)
      chosen = jnp.roll(mask, -1, axis=1).at[:, -1].set(False)
    x = self.predictive_decoder(x, mask, video["tokens"])
    logits = self.text_encoder.vocabulary_logits(x)
    return {"logits": logits, "targets": targets, "mask": chosen}

  def choose_masked(self, batch: dict[str, jax.Array]) -> jax.Array:
    """bool [B, L]: `mask_rate` of the real words, and always at least one.

    What `masked_text` is to predict; needs the stream `masking`.
    """
    ids, mask = batch["text_ids"], batch["text_mask"]
    control = jnp.asarray(self.config.control_ids, ids.dtype)
    word = mask & ~jnp.isin(ids, control)
    u = jax.random.uniform(self.make_rng("masking"), ids.shape)
    u = jnp.where(word, u, 2.0)
    first = u == u.min(axis=1, keepdims=True)
    return word & ((u < self.config.mask_rate) | first)

  def _predict_latent(self, clip, deterministic):
    """From the first half of a clip to the embedding of its second half."""
    past, future = jnp.split(clip, 2, axis=1)
    past = self._half(past, deterministic)
    future = self._half(future, deterministic)
    prediction = _unit(self.latent_predictor(past))
    return {
      "prediction": prediction,
      "target": jax.lax.stop_gradient(future),
      "logit_scale": jnp.float32(LATENT_LOGIT_SCALE),
    }

  def _half(self, video, deterministic):
    """Half a clip, held twice as long, so that the encoder's shapes fit."""
    video = jnp.repeat(video, 2, axis=1)
    return self.encode_video(video, deterministic=deterministic)["embedding"]


def init_params(model: CaliNCE, seed: jax.Array | int) -> Any:
  """Fresh parameters, float32."""
  key = jax.random.key(seed)
  return model.init(
    {"params": key, "negatives": key, "masking": key},
    dummy_batch(model.config, batch_size=2),
    num_negatives=1,
  )["params"]


def dummy_batch(config: ModelConfig, batch_size: int) -> dict[str, jax.Array]:
  """A batch of the right shapes and dtypes, for shape evaluation."""
  B, L = batch_size, config.text_length
  T, S = config.num_frames, config.image_size
  batch = {
    "video": jnp.zeros((B, T, S, S, 3), jnp.uint8),
    "text_ids": jnp.ones((B, L), jnp.int32),
    "text_mask": jnp.ones((B, L), bool),
    "pair_index": jnp.arange(B, dtype=jnp.int32),
    "matched": jnp.ones((B,), jnp.int8),
    "preempted": jnp.zeros((B,), bool),
  }
  if config.classes:
    batch["label"] = jnp.zeros((B,), jnp.int32)
  return batch
