"""Computes each pair's confidence from its alignment score.

The correspondence head sees each given pair once and K uniform negatives of
its video. With a fraction eta of the given pairs mismatched, its
Bayes-optimal correspondence score is

    s* = a / (a + K),   a = (1 - eta) R + eta,   R = p(v, t) / (p(v) p(t))

and the probability that the given pair is matched is

    w = max(0, 1 - eta / a),      a = K s / (1 - s) = K exp(g).

`logit_posterior` computes w so, and is as good as the head is.
`density_ratio.matched_posterior` estimates a from the histograms of alignment
scores of given pairs and of negatives instead. It does not depend on the scale
of the alignment score, so the scorer may be the head's logit, the contrastive
cosine, or both.

The training state holds the statistics of this: running moments of the
negatives' raw scores, two histograms, and one averaged confidence for each
pair. Formulas, sources and tests: docs/method.md
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from calince_jax.losses import density_ratio, moments, noise_robust

CONFIDENCES = (
  "none",
  "score",
  "posterior",
  "density_ratio",
  "robust_xid",
  "oracle",
)
SCORERS = ("head", "cosine", "both")


def correspondence_loss(positive: jax.Array, negatives: jax.Array) -> jax.Array:
  """-[log s(v_i, t_i) + sum_k log(1 - s(v_i, t_n(i,k)))], float32 [N].

  Args:
    positive: [N], the head's logit of each given pair.
    negatives: [N, K], its logits for K negatives of each video; K may be 0.
  """
  positive = positive.astype(jnp.float32)
  negatives = negatives.astype(jnp.float32)
  return jax.nn.softplus(-positive) + jax.nn.softplus(negatives).sum(axis=1)


def base_rate_entropy(num_negatives: int) -> float:
  """The correspondence loss, in nats, of a head that always says 1 / (1 + K).

  A head whose loss stays at this value has learned nothing.
  """
  K = num_negatives
  return math.log1p(K) + K * math.log1p(1 / K) if K else 0.0


def logit_posterior(
  logit: jax.Array, noise_rate: jax.Array | float, num_negatives: int
) -> jax.Array:
  """P(matched | v, t) = max(0, 1 - eta / a), a = K exp(g), of the head's logit.

  Args:
    logit: g, of any shape and float dtype.
    noise_rate: eta in [0, 1).
    num_negatives: K >= 1, the negatives that the head is trained with.

  Returns:
    float32 in [0, 1], of the logit's shape.
  """
  log_a = logit.astype(jnp.float32) + jnp.log(float(num_negatives))
  return jnp.clip(1.0 - noise_rate * jnp.exp(-log_a), 0.0, 1.0)


def warmup_weight(
  weight: jax.Array, step: jax.Array, warmup_steps: int, ramp_steps: int
) -> jax.Array:
  """1 during warm-up, then linearly to `weight`, because the head is untrained.

  Args:
    weight: float32, of any shape.
    step: int32 [], steps done.
    warmup_steps: how many steps the result stays 1.
    ramp_steps: how many steps it then takes to reach `weight`.
  """
  blend = jnp.clip((step - warmup_steps + 1) / max(ramp_steps, 1), 0.0, 1.0)
  return (1.0 - blend) + blend * weight


def init_state(num_pairs: int = 0) -> dict[str, Any]:
  """The statistics before the first batch: all zeros.

  Args:
    num_pairs: of those whose confidences are averaged, see `update_memory`:
      every `pair_index` is below it. 0: of none.

  Returns:
    `moments` of the raw scores, `histograms` of the alignment scores, and
    `memory` where there are pairs to remember. The names of the leaves are
    those of checkpoints.
  """
  state = {
    "moments": {
      name: moments.init_moments()
      for name in ("head", "cosine", "given_cosine")
    },
    "histograms": density_ratio.init_histograms(),
  }
  if num_pairs:
    state["memory"] = {
      "confidence": jnp.zeros((num_pairs,), jnp.float32),
      "visits": jnp.zeros((num_pairs,), jnp.float32),
    }
  return state


def update_statistics(
  state: dict[str, Any],
  raw_scores: dict[str, jax.Array],
  *,
  scorer: str,
  decay: float,
) -> tuple[dict[str, Any], jax.Array]:
  """Adds a batch to the statistics and gives its pairs' alignment scores x.

  A raw score is standardised by the running mean and standard deviation of the
  negatives' raw scores. x is that, for one scorer, or
  (x_head + x_cosine) / sqrt(2) for `both`.

  Args:
    state: see `init_state`.
    raw_scores: `cosine` [N, 1 + K] and, where there is a head, `head`, its
      logits, both float32: first the given pair, then its video's K negatives.
    scorer: one of SCORERS.
    decay: in [0, 1); the weight of all older batches is multiplied by it.

  Returns:
    The new state; and x of the given pairs, float32 [N], without gradient.
  """
  running = dict(state["moments"])
  running["given_cosine"] = moments.update_moments(
    running["given_cosine"], raw_scores["cosine"][:, 0], decay
  )
  for name, values in raw_scores.items():
    if values.shape[1] > 1:
      running[name] = moments.update_moments(
        running[name], values[:, 1:], decay
      )
  standardised = {
    name: moments.standardise(running[name], values)
    for name, values in raw_scores.items()
  }
  x = _alignment_score(standardised, scorer)
  histograms = density_ratio.update_histograms(
    state["histograms"], x[:, 0], x[:, 1:], decay
  )
  return state | {"moments": running, "histograms": histograms}, x[:, 0]


def _alignment_score(standardised, scorer):
  """x from the standardised raw scores `head` and `cosine`."""
  if scorer == "both":
    return (standardised["head"] + standardised["cosine"]) / math.sqrt(2)
  return standardised[scorer]


def inference_calibration(
  state: dict[str, Any], *, scorer: str, noise_rate: float | None
) -> dict[str, Any]:
  """The numbers that give new pairs their confidence, for a JSON file.

  Args:
    state: from `update_statistics`.
    scorer: one of SCORERS.
    noise_rate: eta in [0, 1); None for the estimate.

  Returns:
    `scorer`; `noise_rate`; `head` and `cosine`, each [mean,
    standard deviation] of the negatives' raw scores; and `posterior`,
    P(matched | x) at the centres of the density_ratio.BINS bins. The names are
    those of exported models.
  """
  if noise_rate is None:
    noise_rate = density_ratio.estimate_noise_rate(state["histograms"])
  mean_and_std = {
    name: [float(x) for x in moments.mean_and_std(state["moments"][name])]
    for name in ("head", "cosine")
  }
  posterior = density_ratio.matched_posterior(
    state["histograms"], noise_rate, density_ratio.bin_centres()
  )
  return mean_and_std | {
    "scorer": scorer,
    "noise_rate": float(noise_rate),
    "posterior": [float(p) for p in posterior],
  }


def inference_confidence(
  calibration: dict[str, Any], raw_scores: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """The alignment scores x of new pairs, and their P(matched | x).

  Args:
    calibration: from `inference_calibration`.
    raw_scores: `cosine` and, where the scorer needs it, `head`; float32 of one
      shape, whatever it is.

  Returns:
    x and the confidence in [0, 1], float32 of that shape.
  """
  standardised = {
    name: (values - calibration[name][0])
    / max(calibration[name][1], moments.SMALLEST_STD)
    for name, values in raw_scores.items()
  }
  x = _alignment_score(standardised, calibration["scorer"])
  posterior = jnp.asarray(calibration["posterior"], jnp.float32)
  return x, jnp.interp(x, density_ratio.bin_centres(), posterior)


def confidence(
  kind: str,
  state: dict[str, Any],
  *,
  x: jax.Array,
  raw_scores: dict[str, jax.Array],
  matched: jax.Array,
  noise_rate: jax.Array | float,
  num_negatives: int,
) -> jax.Array:
  """The confidence in each given pair, float32 [N] in [0, 1]; no gradient.

  Args:
    kind: one of CONFIDENCES: `none` (always 1); `score`, the correspondence
      score sigmoid(g); `posterior`, `logit_posterior`; `density_ratio`,
      `density_ratio.matched_posterior`; `robust_xid`, see noise_robust.py; or
      `oracle`, 0 where a pair is known to be mismatched (for studies only).
    state: from `update_statistics`.
    x: float32 [N], alignment scores, from `update_statistics`.
    raw_scores: as for `update_statistics`.
    matched: int8 [N]: 1 matched, 0 mismatched, -1 unknown.
    noise_rate: eta in [0, 1).
    num_negatives: K >= 1, the negatives that the head is trained with.

  Raises:
    ValueError: unknown kind.
  """
  raw_scores = jax.lax.stop_gradient(raw_scores)
  if kind == "none":
    return jnp.ones_like(x)
  if kind == "score":
    return jax.nn.sigmoid(raw_scores["head"][:, 0])
  if kind == "posterior":
    return logit_posterior(raw_scores["head"][:, 0], noise_rate, num_negatives)
  if kind == "density_ratio":
    return density_ratio.matched_posterior(state["histograms"], noise_rate, x)
  if kind == "oracle":
    return (matched != 0).astype(jnp.float32)
  if kind == "robust_xid":
    mean, std = moments.mean_and_std(state["moments"]["given_cosine"])
    return noise_robust.robust_xid_weights(
      raw_scores["cosine"][:, 0], mean, std, delta=0.0, kappa=0.5, w_min=0.25
    )
  raise ValueError(
    f"kind={kind!r} is unknown; choose one of {list(CONFIDENCES)}"
  )


def update_memory(
  memory: dict[str, jax.Array],
  pair_index: jax.Array,
  confidence: jax.Array,
  decay: float,
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Averages each pair's confidence over the batches in which it occurred.

  The plain mean over its first 1 / (1 - decay) batches, then an exponential
  moving average.

  Args:
    memory: for each pair its averaged `confidence` and `visits`, the number of
      batches in which it occurred; float32 [num_pairs].
    pair_index: int32 [N], below num_pairs.
    confidence: float32 [N], in this batch.
    decay: in [0, 1); 0 keeps the latest confidence only.

  Returns:
    The new memory; and the averages of this batch's pairs, float32 [N].
  """
  visits = memory["visits"][pair_index]
  old = jnp.minimum(decay, visits / (visits + 1.0))
  average = old * memory["confidence"][pair_index] + (1 - old) * confidence
  return {
    "confidence": memory["confidence"].at[pair_index].set(average),
    "visits": memory["visits"].at[pair_index].add(1.0),
  }, average


def effective_sample_size(weights: jax.Array) -> jax.Array:
  """(sum w)^2 / sum w^2, in [0, N], of weights [N]: Kish's sample size."""
  return weights.sum() ** 2 / jnp.maximum((weights**2).sum(), 1e-12)
