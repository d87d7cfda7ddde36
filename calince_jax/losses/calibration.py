"""From the correspondence head's logit to the confidence of a pair.

The head sees each given pair once and K uniform negatives of its video, so
with a fraction eta of given pairs mismatched its Bayes-optimal score is

    s* = a / (a + K),   a = (1 - eta) R + eta,   R = p(v, t) / (p(v) p(t))

and the probability that the given pair is clean is

    w = max(0, 1 - eta / a),      a = K s / (1 - s) = K exp(g).

`eta` is given or estimated. A mismatched pair is distributed as a uniform
negative, so the logits of given pairs are a mixture of those of clean pairs
and, with weight eta, those of negatives. The mixture's weight is bounded by
the ratio of the two distribution functions:

    eta <= inf_t F_given(t) / F_negative(t)

(mixture proportion estimation: Blanchard, Lee and Scott, JMLR 2010), and the
bound is tight where low logits hold no clean pair. The distribution functions
come from two running histograms that live in the training state.
docs/method.md
"""

import math

import jax
import jax.numpy as jnp

KINDS = ("none", "score", "posterior")

# Logits beyond the edges are counted in the outermost bins.
HISTOGRAM_RANGE = (-12.0, 12.0)
HISTOGRAM_BINS = 96
# The ratio is read only where this share of the negatives lies below t: in
# the far tail it is a quotient of two small counts.
SMALLEST_TAIL = 0.2
# An untrained head cannot tell the two distributions apart and the estimate
# is near 1, which would trust no pair at all.
LARGEST_NOISE_RATE = 0.9


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


def confidence(
  logit: jax.Array,
  *,
  kind: str,
  noise_rate: jax.Array | float,
  num_negatives: int,
  floor: float = 0.0,
  power: float = 1.0,
) -> jax.Array:
  """How far each pair is trusted, float32 in [floor, 1]; no gradient.

  Args:
    logit: the head's logits g, any shape.
    kind: `none` (1), `score` (sigmoid(g)) or `posterior` (see above).
    noise_rate: eta in [0, 1), used by `posterior`.
    num_negatives: K, the number of negatives that the head trains with.
    floor: the least confidence, in [0, 1].
    power: exponent on the confidence; > 1 separates more.

  Raises:
    ValueError: unknown kind.
  """
  g = jax.lax.stop_gradient(logit).astype(jnp.float32)
  if kind == "none":
    return jnp.ones_like(g)
  if kind == "score":
    w = jax.nn.sigmoid(g)
  elif kind == "posterior":
    w = posterior(g, jax.lax.stop_gradient(noise_rate), num_negatives)
  else:
    raise ValueError(f"kind={kind!r} is unknown; choose one of {list(KINDS)}")
  return floor + (1.0 - floor) * w**power


def warm_up(
  confidence: jax.Array, step: jax.Array, warmup_steps: int, ramp_steps: int
) -> jax.Array:
  """Blends from 1 to `confidence`: an untrained head calibrates nothing.

  1 until `warmup_steps`, then linear over `ramp_steps`.
  """
  blend = jnp.clip((step - warmup_steps + 1) / max(ramp_steps, 1), 0.0, 1.0)
  return (1.0 - blend) + blend * confidence


def init_histograms() -> dict[str, jax.Array]:
  """The running histograms of the head's logits, float32 [bins], empty."""
  empty = jnp.zeros((HISTOGRAM_BINS,), jnp.float32)
  return {"given": empty, "negative": empty}


def update_histograms(
  histograms: dict[str, jax.Array],
  positive: jax.Array,
  negatives: jax.Array,
  decay: float,
) -> dict[str, jax.Array]:
  """Adds a batch's logits; each older batch counts `decay` times less.

  The counts are per pair, given or negative, of the global batch.
  """
  return {
    "given": decay * histograms["given"] + _histogram(positive),
    "negative": decay * histograms["negative"] + _histogram(negatives),
  }


def estimate_noise_rate(histograms: dict[str, jax.Array]) -> jax.Array:
  """inf_t F_given(t) / F_negative(t), float32 [] in [0, 0.9].

  0.9, the cap, while the histograms are empty or cannot be told apart.
  """

  def distribution_function(counts):
    cumulative = jnp.cumsum(counts)
    return cumulative / jnp.maximum(cumulative[-1], 1e-6)

  F_given = distribution_function(histograms["given"])
  F_negative = distribution_function(histograms["negative"])
  ratio = F_given / jnp.maximum(F_negative, 1e-6)
  ratio = jnp.where(F_negative >= SMALLEST_TAIL, ratio, 1.0)
  return jnp.clip(ratio.min(), 0.0, LARGEST_NOISE_RATE)


def effective_sample_size(weights: jax.Array) -> jax.Array:
  """(sum w)^2 / sum w^2, in [0, N]: how many pairs the loss rests on."""
  return weights.sum() ** 2 / jnp.maximum((weights**2).sum(), 1e-12)


def _histogram(logits):
  low, high = HISTOGRAM_RANGE
  logits = jax.lax.stop_gradient(logits).astype(jnp.float32).reshape(-1)
  place = (logits - low) / (high - low) * HISTOGRAM_BINS
  place = jnp.clip(place, 0, HISTOGRAM_BINS - 1).astype(jnp.int32)
  return jax.nn.one_hot(place, HISTOGRAM_BINS).sum(axis=0)
