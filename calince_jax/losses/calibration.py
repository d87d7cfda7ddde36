"""From the score of a pair to the confidence in it.

The correspondence head sees each given pair once and K uniform negatives of
its video, so with a fraction eta of given pairs mismatched its Bayes-optimal
score is

    s* = a / (a + K),   a = (1 - eta) R + eta,   R = p(v, t) / (p(v) p(t))

and the probability that the given pair is clean is

    w = max(0, 1 - eta / a),      a = K s / (1 - s) = K exp(g).

That is `posterior`: right as far as the head is. `density_ratio` reads a from
what the scores of given pairs and of negatives are seen to be, see
density_ratio.py, whatever the scale of the score; so the score may be the
head's logit, the contrastive cosine, or both.

What is known of the scores lives in the training state: running moments of
the negatives' scores, two histograms, and a memory of one confidence a pair.
docs/method.md
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from calince_jax.losses import density_ratio, moments, noise_robust

KINDS = (
  "none",
  "score",
  "posterior",
  "density_ratio",
  "robust_xid",
  "oracle",
)
SCORES = ("head", "cosine", "both")


def correspondence_loss(positive: jax.Array, negatives: jax.Array) -> jax.Array:
  """-[log s(v_i, t_i) + sum_k log(1 - s(v_i, t_n(i,k)))], float32 [N].

  Args:
    positive: [N], the head's logit of each given pair.
    negatives: [N, K], its logits of K negatives of each video; K may be 0.
  """
  positive = positive.astype(jnp.float32)
  negatives = negatives.astype(jnp.float32)
  return jax.nn.softplus(-positive) + jax.nn.softplus(negatives).sum(axis=1)


def base_rate_entropy(num_negatives: int) -> float:
  """The correspondence loss of a head that knows only the base rate 1/(1+K).

  A loss that stays here means a head that has learned nothing.
  """
  K = num_negatives
  return math.log1p(K) + K * math.log1p(1 / K) if K else 0.0


def posterior(
  logit: jax.Array, noise_rate: jax.Array | float, num_negatives: int
) -> jax.Array:
  """max(0, 1 - eta / a), a = K exp(g): P(clean | v, t), float32, any shape."""
  log_a = logit.astype(jnp.float32) + jnp.log(float(num_negatives))
  return jnp.clip(1.0 - noise_rate * jnp.exp(-log_a), 0.0, 1.0)


def warm_up(
  confidence: jax.Array, step: jax.Array, warmup_steps: int, ramp_steps: int
) -> jax.Array:
  """Blends from 1 to `confidence`: an untrained head calibrates nothing.

  1 until `warmup_steps`, then linear over `ramp_steps`.
  """
  blend = jnp.clip((step - warmup_steps + 1) / max(ramp_steps, 1), 0.0, 1.0)
  return (1.0 - blend) + blend * confidence


def init_state(num_pairs: int) -> dict[str, Any]:
  """Nothing known yet; the memory holds one number for each pair index."""
  return {
    "moments": {
      name: moments.init_moments()
      for name in ("head", "cosine", "given_cosine")
    },
    "histograms": density_ratio.init_histograms(),
    "memory": {
      "confidence": jnp.zeros((num_pairs,), jnp.float32),
      "visits": jnp.zeros((num_pairs,), jnp.float32),
    },
  }


def observe(
  state: dict[str, Any],
  scores: dict[str, jax.Array],
  *,
  score: str,
  decay: float,
) -> tuple[dict[str, Any], jax.Array]:
  """Takes in a batch's scores; returns the state and each given pair's x.

  x is the score in deviations of the negatives' from their mean, of the
  running moments; `both` is (x_head + x_cosine) / sqrt(2).

  Args:
    state: see `init_state`.
    scores: `cosine` [N, 1 + K] and, where there is a head, `head`, its logits:
      the given pair first, then its video's K negatives.
    score: one of SCORES.
    decay: in [0, 1); each older batch counts so much less.

  Returns:
    The new state; and x, float32 [N], without gradient.
  """
  known = dict(state["moments"])
  known["given_cosine"] = moments.update_moments(
    known["given_cosine"], scores["cosine"][:, 0], decay
  )
  for name, values in scores.items():
    if values.shape[1] > 1:
      known[name] = moments.update_moments(known[name], values[:, 1:], decay)
  x = standardise(known, scores, score=score)
  histograms = density_ratio.update_histograms(
    state["histograms"], x[:, 0], x[:, 1:], decay
  )
  return state | {"moments": known, "histograms": histograms}, x[:, 0]


def standardise(
  known: dict[str, Any], scores: dict[str, jax.Array], *, score: str
) -> jax.Array:
  """x of scores of any shape, by the moments of the negatives; float32."""
  x = {
    name: moments.standardise(known[name], values)
    for name, values in scores.items()
  }
  return (
    (x["head"] + x["cosine"]) / math.sqrt(2) if score == "both" else x[score]
  )


def freeze(
  state: dict[str, Any], *, score: str, noise_rate: float | None
) -> dict[str, Any]:
  """What gives new pairs their confidence, as plain numbers for a JSON file.

  Args:
    state: from `observe`.
    score: one of SCORES.
    noise_rate: eta; None for the estimate.

  Returns:
    `scorer`; `noise_rate`; `head` and `cosine`, the negatives' [mean,
    deviation]; `posterior`, P(clean) in the density_ratio.BINS bins of x.
  """
  if noise_rate is None:
    noise_rate = density_ratio.estimate_noise_rate(state["histograms"])
  frozen = {
    name: [float(x) for x in moments.mean_and_std(state["moments"][name])]
    for name in ("head", "cosine")
  }
  centres = density_ratio.bin_centres()
  w = density_ratio.posterior(state["histograms"], noise_rate, centres)
  return frozen | {
    "scorer": score,
    "noise_rate": float(noise_rate),
    "posterior": [float(p) for p in w],
  }


def frozen_confidence(
  frozen: dict[str, Any], scores: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """x and P(clean), float32, of scores of any shape; see `freeze`."""
  x = {
    name: (values - frozen[name][0])
    / max(frozen[name][1], moments.SMALLEST_STD)
    for name, values in scores.items()
  }
  score = frozen["scorer"]
  x = (x["head"] + x["cosine"]) / math.sqrt(2) if score == "both" else x[score]
  p = jnp.asarray(frozen["posterior"], jnp.float32)
  return x, jnp.interp(x, density_ratio.bin_centres(), p)


def confidence(
  kind: str,
  state: dict[str, Any],
  *,
  x: jax.Array,
  scores: dict[str, jax.Array],
  matched: jax.Array,
  noise_rate: jax.Array | float,
  num_negatives: int,
) -> jax.Array:
  """How far each given pair is trusted, float32 [N] in [0, 1]; no gradient.

  Args:
    kind: `none` (1), `score` (sigmoid(g)), `posterior`, `density_ratio` (see
      above), `robust_xid` (noise_robust.py), or `oracle`: 0 where a pair is
      known to be mismatched, which only studies know.
    state: from `observe`.
    x: [N], from `observe`.
    scores: as for `observe`.
    matched: int8 [N], 1, 0, or -1 for unknown.
    noise_rate: eta in [0, 1).
    num_negatives: K, the number of negatives that the head trains with.

  Raises:
    ValueError: unknown kind.
  """
  scores = jax.lax.stop_gradient(scores)
  if kind == "none":
    return jnp.ones_like(x)
  if kind == "score":
    return jax.nn.sigmoid(scores["head"][:, 0])
  if kind == "posterior":
    return posterior(scores["head"][:, 0], noise_rate, num_negatives)
  if kind == "density_ratio":
    return density_ratio.posterior(state["histograms"], noise_rate, x)
  if kind == "oracle":
    return (matched != 0).astype(jnp.float32)
  if kind == "robust_xid":
    mean, std = moments.mean_and_std(state["moments"]["given_cosine"])
    return noise_robust.robust_xid_weights(
      scores["cosine"][:, 0], mean, std, delta=0.0, kappa=0.5, w_min=0.25
    )
  raise ValueError(f"kind={kind!r} is unknown; choose one of {list(KINDS)}")


def remember(
  memory: dict[str, jax.Array],
  pair_index: jax.Array,
  confidence: jax.Array,
  decay: float,
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Averages the confidence of each pair over its visits.

  A running mean over the first 1 / (1 - decay) visits, exponential after.

  Args:
    memory: `confidence` and `visits`, float32 [num_pairs].
    pair_index: int32 [N], below num_pairs.
    confidence: float32 [N], of this visit.
    decay: in [0, 1); 0 keeps the last visit alone.

  Returns:
    The memory after this visit, and the averages, float32 [N].
  """
  visits = memory["visits"][pair_index]
  keep = jnp.minimum(decay, visits / (visits + 1.0))
  average = keep * memory["confidence"][pair_index] + (1 - keep) * confidence
  return {
    "confidence": memory["confidence"].at[pair_index].set(average),
    "visits": memory["visits"].at[pair_index].add(1.0),
  }, average


def effective_sample_size(weights: jax.Array) -> jax.Array:
  """(sum w)^2 / sum w^2, in [0, N]: how many pairs the loss rests on."""
  return weights.sum() ** 2 / jnp.maximum((weights**2).sum(), 1e-12)
