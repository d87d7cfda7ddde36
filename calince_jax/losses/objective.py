"""The training objective: the weighted sum of the three co-training losses.

    L = lam_c L_corr + lam_n sum_i w_i l_i / sum_i w_i + lam_p L_pred

and, when a model is fine-tuned to tell classes apart, + lam_y L_class.
With w = 1 it is plain co-training; with lam_c = lam_p = 0 as well, InfoNCE.
A pair's weight w comes from its alignment score (losses/calibration.py), so
the total factorises into the correspondence p(c | v, t) and what is learned
from the pair given c. Instead of InfoNCE, l_i may be one of the noise-robust
losses that Cali-NCE is compared with (losses/noise_robust.py). docs/method.md
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from calince_jax import fields
from calince_jax.fields import DERIVED, OneOf, Range
from calince_jax.losses import (
  calibration,
  classification,
  contrastive,
  density_ratio,
  given_confidence,
)
from calince_jax.losses.calibrated_nce import weighted_mean
from calince_jax.losses.predictive import predictive_loss
from calince_jax.losses.tiled_nce import Tiling

TRUST = ("evidence", "schedule")
CONFIDENCES = (*calibration.CONFIDENCES, "given")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What is minimised: `config.objective`; configs/base.py documents each key.

  Attributes:
    total_steps: of the run, whose shares the warm-up and the ramp are.
    tiling: how the contrastive loss walks the similarities; None: dense.
  """

  total_steps: Annotated[int, Range("[1, 1e9]"), DERIVED]
  tiling: Annotated[Tiling | None, DERIVED] = None
  correspondence_weight: Annotated[float, Range("[0, 1e6]")]  # lam_c
  contrastive_weight: Annotated[float, Range("[0, 1e6]")]  # lam_n
  predictive_weight: Annotated[float, Range("[0, 1e6]")]  # lam_p
  classification_weight: Annotated[float, Range("[0, 1e6]")]  # lam_y
  label_smoothing: Annotated[float, Range("[0, 1)")]
  contrastive: Annotated[str, OneOf(contrastive.LOSSES)]  # l_i
  mask_duplicates: bool
  num_negatives: Annotated[int, Range("[1, 1e6]")]  # K
  confidence: Annotated[str, OneOf(CONFIDENCES)]
  scorer: Annotated[str, OneOf(calibration.SCORERS)]
  noise_rate: Annotated[float | None, Range("[0, 1)")]  # eta
  trust: Annotated[str, OneOf(TRUST)]
  floor: Annotated[float, Range("[0, 1]")]
  power: Annotated[float, Range("[0, 100]")]
  memory: Annotated[float, Range("[0, 1]")]
  warmup_share: Annotated[float, Range("[0, 1]")]
  ramp_share: Annotated[float, Range("[0, 1]")]
  weigh_predictive: bool
  histogram_decay: Annotated[float, Range("[0, 1]")]

  def __post_init__(self):
    fields.check_instance(self)
    weights = (
      self.correspondence_weight,
      self.contrastive_weight,
      self.predictive_weight,
      self.classification_weight,
    )
    if not any(weights):
      raise ValueError("all weights are 0: there is nothing to learn")
    if not self.correspondence_weight and self.needs_head:
      raise ValueError(
        f"confidence={self.confidence!r} with scorer={self.scorer!r} needs the"
        " correspondence head, and correspondence_weight is 0; use"
        " scorer='cosine', and another confidence than 'score' or 'posterior'"
      )
    if self.trust == "evidence" and self.memory:
      raise ValueError(
        f"memory={self.memory} goes with trust='schedule': weights that follow"
        " the evidence of the moment are not averaged"
      )
    if self.contrastive not in contrastive.LOSSES_FROM_SUMS:
      for name in ("mask_duplicates", "tiling"):
        if getattr(self, name):
          raise ValueError(
            f"contrastive={self.contrastive!r} has no {name}; it goes with one"
            f" of {list(contrastive.LOSSES_FROM_SUMS)}"
          )

  @property
  def warmup_steps(self) -> int:
    """Steps with all weights 1."""
    return round(self.warmup_share * self.total_steps)

  @property
  def ramp_steps(self) -> int:
    """Steps over which the confidences are blended in after the warm-up."""
    return round(self.ramp_share * self.total_steps)

  @property
  def needs_head(self) -> bool:
    """Whether a pair's score or confidence asks the correspondence head."""
    return self.scorer != "cosine" or self.confidence in ("score", "posterior")

  @property
  def needs_momentum(self) -> bool:
    """Whether the moving average's own embeddings are looked at."""
    return self.contrastive == "albef" and self.contrastive_weight > 0


def co_training_loss(
  objective: Objective,
  outputs: dict[str, Any],
  batch: dict[str, jax.Array],
  state: dict[str, Any],
  step: jax.Array,
) -> tuple[jax.Array, dict[str, Any]]:
  """The loss of a global batch of N pairs.

  Args:
    objective: the choices.
    outputs: from the model: `video`, `text` float32 [N, D], L2-normalised;
      `logit_scale` []; `cosine` [N, 1 + K], first the given pair's, then those
      of K negatives; `correspondence` and `held_out` [N, 1 + K], likewise, the
      logits of the head that is trained on the pair and of the one that is not
      (absent where correspondence_weight is 0); `prediction` (absent where
      predictive_weight is 0), see losses/predictive.py; for `siglip`
      `logit_bias` []; for `albef` `momentum_video`, `momentum_text` [N, D];
      where classification_weight is not 0 `class_logits` [N, C].
    batch: `pair_index` int32 [N] and `matched` int8 [N]: 1 matched, 0
      mismatched, -1 unknown. Only the confidence `oracle` uses `matched`.
      `label` int32 [N], the number of a clip's class, -1 unknown, where
      classification_weight is not 0. `given_confidence` float32 [N] in [0, 1],
      what was known of a pair before training, where confidence is `given`.
    state: statistics of the raw scores, see calibration.init_state.
    step: int32 [], steps done, for the warm-up of the weights.

  Returns:
    The loss, float32 [] in nats; and a dict with `metrics` (scalars and a
    histogram), `calibration` (the new state) and `pairs`, arrays [N]:
    `pair_index`, `matched`, `alignment_score` float32, `confidence` float32 in
    [0, 1], `weight` float32, what multiplied the pair's loss, and `finite`
    bool, whether the model's own outputs for this pair are.
  """
  terms, metrics = {}, {}
  if objective.correspondence_weight:
    logits = outputs["correspondence"].astype(jnp.float32)
    positive, negatives = logits[:, 0], logits[:, 1:]
    terms["correspondence"] = calibration.correspondence_loss(
      positive, negatives
    ).mean()
    metrics |= _head_metrics(positive, negatives, objective)
  state, pairs, pair_metrics = _pairs(objective, outputs, batch, state, step)
  weights = pairs["weight"]
  metrics |= pair_metrics

  # ALBEF's alpha goes from 0 to its value while weights go from 1 to theirs.
  blend = _ramp(objective, step)
  l, contrastive_metrics = contrastive.pair_loss(
    objective.contrastive if objective.contrastive_weight else "infonce",
    outputs,
    batch["pair_index"],
    blend=blend,
    mask_duplicates=objective.mask_duplicates,
    tiling=objective.tiling,
  )
  metrics |= contrastive_metrics
  if objective.contrastive_weight:
    terms["contrastive"] = weighted_mean(l, weights)
  if objective.predictive_weight:
    nats = predictive_loss(outputs["prediction"])
    if "nats" in outputs["prediction"]:  # depends on this pair only
      pairs["finite"] &= jnp.isfinite(nats)
    w = weights if objective.weigh_predictive else jnp.ones_like(weights)
    terms["predictive"] = weighted_mean(nats, w)
  if objective.classification_weight:
    terms["classification"], metrics["class_accuracy"] = classification.loss(
      outputs["class_logits"], batch["label"], objective.label_smoothing
    )

  lam = {
    "correspondence": objective.correspondence_weight,
    "contrastive": objective.contrastive_weight,
    "predictive": objective.predictive_weight,
    "classification": objective.classification_weight,
  }
  loss = sum(lam[name] * term for name, term in terms.items())
  metrics |= terms | _batch_metrics(outputs, weights) | {"loss": loss}
  return loss, {"metrics": metrics, "calibration": state, "pairs": pairs}


def _pairs(objective, outputs, batch, state, step):
  """The new state, the `pairs` of `co_training_loss`, and their metrics."""
  raw_scores = {"cosine": outputs["cosine"]}
  if objective.correspondence_weight:
    raw_scores["head"] = outputs["held_out"].astype(jnp.float32)
  state, x = calibration.update_statistics(
    state,
    raw_scores,
    scorer=objective.scorer,
    decay=objective.histogram_decay,
  )
  estimate = density_ratio.estimate_noise_rate(state["histograms"])
  eta = estimate if objective.noise_rate is None else objective.noise_rate
  arguments = {
    "x": x,
    "raw_scores": raw_scores,
    "matched": batch["matched"],
    "noise_rate": eta,
    "num_negatives": objective.num_negatives,
  }
  kind, power = objective.confidence, objective.power
  evidence = {}
  # `none` and `oracle` do not estimate anything; report what the data say.
  reported = "density_ratio" if kind in ("none", "oracle") else kind
  if kind == "given":
    w, power, evidence = given_confidence.combine(
      state["histograms"],
      x,
      batch["given_confidence"],
      noise_rate=objective.noise_rate,
      largest_power=objective.power,
      trust=None if objective.trust == "evidence" else _ramp(objective, step),
    )
    confidence = w
  else:
    w = calibration.confidence(kind, state, **arguments)
    confidence = calibration.confidence(reported, state, **arguments)
  if objective.memory:
    memory, w = calibration.update_memory(
      state["memory"], batch["pair_index"], w, objective.memory
    )
    state, confidence = state | {"memory": memory}, w
  if objective.trust == "evidence" and kind == "density_ratio":
    w, evidence = density_ratio.earned_weights(
      state["histograms"],
      x,
      noise_rate=objective.noise_rate,
      largest_power=objective.power,
    )
    w = objective.floor + (1.0 - objective.floor) * w
  elif kind == "given":  # its evidence is what is blended in
    # w itself, to the last bit, where the power is 1.
    w = jnp.where(power == 1.0, w, w**power)
    w = objective.floor + (1.0 - objective.floor) * w
  else:
    w = objective.floor + (1.0 - objective.floor) * w**power
    w = calibration.warmup_weight(
      w, step, objective.warmup_steps, objective.ramp_steps
    )
  edges = jnp.linspace(0.0, 1.0, 11)
  metrics = evidence | {
    "noise_rate": estimate,
    "confidence_mean": confidence.mean(),
    "confidence_histogram": jnp.histogram(confidence, bins=edges)[0],
  }
  finite = [jnp.isfinite(values[:, 0]) for values in raw_scores.values()]
  pairs = {
    "pair_index": batch["pair_index"],
    "finite": jnp.stack(finite).all(axis=0),
    "matched": batch["matched"],
    "alignment_score": x,
    "confidence": confidence,
    "weight": w,
  }
  return state, jax.lax.stop_gradient(pairs), metrics


def _ramp(objective, step):
  """0 in the warm-up, then linearly to 1."""
  return 1.0 - calibration.warmup_weight(
    jnp.float32(0.0), step, objective.warmup_steps, objective.ramp_steps
  )


def _head_metrics(positive, negatives, objective):
  """Metrics of the head's logits of the given pairs and of their negatives."""
  # Equal priors: the head is trained with K negatives for each given pair.
  threshold = -jnp.log(float(objective.num_negatives))
  metrics = {
    "base_rate_entropy": jnp.float32(
      calibration.base_rate_entropy(negatives.shape[1])
    ),
    "score_positive": jax.nn.sigmoid(positive).mean(),
  }
  if negatives.shape[1]:
    accuracy = (positive > threshold).mean() + (negatives < threshold).mean()
    metrics["balanced_accuracy"] = accuracy / 2
    metrics["score_negative"] = jax.nn.sigmoid(negatives).mean()
  return metrics


def _batch_metrics(outputs, weights):
  """The loss at chance, and signs of collapsed embeddings or weights."""
  collapse = {
    # The mean cosine of two different clips or texts: 1 means collapse.
    f"{name}_collapse": _mean_other_cosine(outputs[name])
    for name in ("video", "text")
  }
  return collapse | {
    "ln_N": jnp.log(jnp.float32(len(weights))),
    "effective_sample_size": calibration.effective_sample_size(weights),
    "logit_scale": jnp.float32(outputs["logit_scale"]),
  }


def _mean_other_cosine(embedding):
  """mean_{i != j} <z_i, z_j> of L2-normalised [N, D], without the N x N."""
  N = embedding.shape[0]
  total = (embedding.sum(axis=0) ** 2).sum() - (embedding**2).sum()
  return total / max(N * (N - 1), 1)
