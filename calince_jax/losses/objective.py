"""The co-training mix.

    L = lam_c L_corr + lam_n sum_i w_i l_i / sum_i w_i + lam_p L_pred

With w = 1 it is plain co-training; with lam_c = lam_p = 0 as well, InfoNCE.
The correspondence score of a pair gives its w (losses/calibration.py), so the
total factorises into p(c | v, t), the correspondence, and what is learned from
the pair given c. docs/method.md
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from calince_jax.losses import calibration
from calince_jax.losses.calibrated_nce import (
  pair_losses,
  similarity,
  weighted_mean,
)
from calince_jax.losses.predictive import predictive_loss


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised; a plain record of the choices in configs/base.py."""

  correspondence_weight: float = 1.0  # lam_c
  contrastive_weight: float = 1.0  # lam_n
  predictive_weight: float = 1.0  # lam_p
  num_negatives: int = 1  # K
  confidence: str = "posterior"  # calibration.KINDS
  noise_rate: float | None = None  # eta; None: estimated
  floor: float = 0.0
  power: float = 1.0
  warmup_steps: int = 0
  ramp_steps: int = 0
  weigh_predictive: bool = False  # w on the predictive term, too
  histogram_decay: float = 0.98  # of the noise rate's running histograms

  def __post_init__(self):
    if self.confidence not in calibration.KINDS:
      raise ValueError(
        f"confidence={self.confidence!r} is unknown;"
        f" choose one of {list(calibration.KINDS)}"
      )
    weights = {
      "correspondence_weight": self.correspondence_weight,
      "contrastive_weight": self.contrastive_weight,
      "predictive_weight": self.predictive_weight,
    }
    for name, value in weights.items():
      if value < 0:
        raise ValueError(f"{name}={value} must not be negative")
    if not any(weights.values()):
      raise ValueError("all three weights are 0: there is nothing to learn")
    if self.confidence != "none" and not self.correspondence_weight:
      raise ValueError(
        f"confidence={self.confidence!r} needs the correspondence head, and"
        " correspondence_weight is 0; use confidence='none'"
      )
    if self.num_negatives < 1:
      raise ValueError(f"num_negatives={self.num_negatives} must be positive")
    if self.noise_rate is not None and not 0 <= self.noise_rate < 1:
      raise ValueError(f"noise_rate={self.noise_rate} must be in [0, 1)")
    if not 0 <= self.floor <= 1:
      raise ValueError(f"floor={self.floor} must be in [0, 1]")


def co_training_loss(
  objective: Objective,
  outputs: dict[str, Any],
  histograms: dict[str, jax.Array],
  step: jax.Array,
) -> tuple[jax.Array, dict[str, Any]]:
  """The loss of a global batch of N pairs.

  Args:
    objective: the mix.
    outputs: of the model: `video`, `text` float32 [N, D], L2-normalised;
      `logit_scale` []; `correspondence` [N, 1 + K], the given pair's logit
      first (absent where its weight is 0); `prediction` (likewise), see
      losses/predictive.py.
    histograms: of the noise rate, see losses/calibration.py.
    step: int32 [], for the warm-up of the confidences.

  Returns:
    The loss, float32 []; and a dict with `metrics` (scalars and a histogram),
    `histograms` (updated), `confidence` [N] and `pair_loss` [N].
  """
  terms, metrics = {}, {}
  weights = jnp.ones(outputs["video"].shape[:1], jnp.float32)
  if objective.correspondence_weight:
    logits = outputs["correspondence"].astype(jnp.float32)
    positive, negatives = logits[:, 0], logits[:, 1:]
    histograms = calibration.update_histograms(
      histograms, positive, negatives, objective.histogram_decay
    )
    terms["correspondence"] = calibration.correspondence_loss(
      positive, negatives
    ).mean()
    weights, seen = _confidence(objective, positive, histograms, step)
    metrics |= seen | _head_metrics(positive, negatives, objective)

  S = similarity(outputs["video"], outputs["text"], outputs["logit_scale"])
  pair_loss = pair_losses(S)
  terms["contrastive"] = weighted_mean(pair_loss, weights)
  if objective.predictive_weight:
    nats = predictive_loss(outputs["prediction"])
    trust = weights if objective.weigh_predictive else jnp.ones_like(weights)
    terms["predictive"] = weighted_mean(nats, trust)

  lam = {
    "correspondence": objective.correspondence_weight,
    "contrastive": objective.contrastive_weight,
    "predictive": objective.predictive_weight,
  }
  loss = sum(lam[name] * term for name, term in terms.items())
  metrics |= terms | _contrastive_metrics(S, outputs, weights)
  metrics |= {"loss": loss, "infonce": pair_loss.mean()}
  return loss, {
    "metrics": metrics,
    "histograms": histograms,
    "confidence": weights,
    "pair_loss": pair_loss,
  }


def _confidence(objective, positive, histograms, step):
  """w [N] after warm-up, and what is worth watching of it."""
  estimate = calibration.estimate_noise_rate(histograms)
  eta = estimate if objective.noise_rate is None else objective.noise_rate
  w = calibration.confidence(
    positive,
    kind=objective.confidence,
    noise_rate=eta,
    num_negatives=objective.num_negatives,
    floor=objective.floor,
    power=objective.power,
  )
  w = calibration.warm_up(w, step, objective.warmup_steps, objective.ramp_steps)
  edges = jnp.linspace(0.0, 1.0, 11)
  return w, {
    "noise_rate": estimate,
    "confidence_mean": w.mean(),
    "confidence_histogram": jnp.histogram(w, bins=edges)[0],
  }


def _head_metrics(positive, negatives, objective):
  """Accuracy at equal priors: the head is trained with K negatives a pair."""
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


def _contrastive_metrics(S, outputs, weights):
  """The chance baseline, accuracy, and signs of collapse."""
  N = S.shape[0]
  index = jnp.arange(N)
  right = (S.argmax(axis=1) == index).mean() + (
    S.argmax(axis=0) == index
  ).mean()
  spread = {
    # The mean cosine of two different clips or texts: 1 means collapse.
    f"{name}_collapse": _mean_other_cosine(outputs[name])
    for name in ("video", "text")
  }
  return spread | {
    "ln_N": jnp.log(jnp.float32(N)),
    "in_batch_accuracy": right / 2,
    "effective_sample_size": calibration.effective_sample_size(weights),
    "logit_scale": jnp.float32(outputs["logit_scale"]),
  }


def _mean_other_cosine(embedding):
  """mean_{i != j} <z_i, z_j> of L2-normalised [N, D], without the N x N."""
  N = embedding.shape[0]
  total = (embedding.sum(axis=0) ** 2).sum() - (embedding**2).sum()
  return total / max(N * (N - 1), 1)
