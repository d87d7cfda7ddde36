"""Given pairs against mismatched ones: noise rate and posterior from scores.

A mismatched pair is distributed as a uniform negative, whose score is seen K
times for each given pair. So the scores x of the given pairs are a mixture

    f_given(x) = (1 - eta) f_clean(x) + eta f_negative(x)

and with r(x) = f_negative(x) / f_given(x)

    P(clean | x) = 1 - eta r(x),      eta <= 1 / sup_x r(x).

r is estimated from two running histograms under one assumption, that it does
not increase with x: a higher score never speaks for a mismatch. This is
isotonic regression (Barlow et al., 1972; here by its min-max formula), and the
posterior is calibrated whatever the score's own scale is. The bound on eta
(mixture proportion estimation: Blanchard, Lee and Scott, JMLR 2010) is tight
where low scores hold no clean pair. docs/method.md
"""

import jax
import jax.numpy as jnp

# Scores are standardised by the negatives' mean and deviation, so negatives
# lie about 0 and clean pairs above; beyond the edges, the outermost bins.
RANGE = (-6.0, 18.0)
BINS = 128
# The noise rate is read only where this share of the negatives lies below: in
# the far tail it is a quotient of two small counts.
SMALLEST_TAIL = 0.2
# An untrained scorer cannot tell the two distributions apart and the estimate
# is near 1, which would trust no pair at all.
LARGEST_NOISE_RATE = 0.9


def init_histograms() -> dict[str, jax.Array]:
  """The running histograms of standardised scores, float32 [BINS], empty."""
  empty = jnp.zeros((BINS,), jnp.float32)
  return {"given": empty, "negative": empty}


def update_histograms(
  histograms: dict[str, jax.Array],
  given: jax.Array,
  negatives: jax.Array,
  decay: float,
) -> dict[str, jax.Array]:
  """Adds a batch's scores, any shape; each older batch counts `decay` less.

  The counts are per pair, given or negative, of the global batch.
  """
  return {
    "given": decay * histograms["given"] + _counts(given),
    "negative": decay * histograms["negative"] + _counts(negatives),
  }


def estimate_noise_rate(histograms: dict[str, jax.Array]) -> jax.Array:
  """inf_x F_given(x) / F_negative(x), float32 [] in [0, 0.9].

  0.9, the cap, while the histograms are empty or cannot be told apart.
  """
  F_given = jnp.cumsum(_density(histograms["given"]))
  F_negative = jnp.cumsum(_density(histograms["negative"]))
  ratio = F_given / jnp.maximum(F_negative, 1e-6)
  ratio = jnp.where(F_negative >= SMALLEST_TAIL, ratio, 1.0)
  return jnp.clip(ratio.min(), 0.0, LARGEST_NOISE_RATE)


def ratio(histograms: dict[str, jax.Array]) -> jax.Array:
  """r = f_negative / f_given of each bin, float32 [BINS], not increasing.

    r_i = min_{j <= i} max_{k >= i} negative(j..k) / given(j..k)

  with the mass of the bins j to k. 1 everywhere while there is nothing to
  compare.
  """
  G = jnp.cumsum(_density(histograms["given"]))
  N = jnp.cumsum(_density(histograms["negative"]))

  def mass(F):  # [j, k]
    return F[None, :] - jnp.pad(F, (1, 0))[:-1, None]

  # Less than one pair in a million decides nothing.
  average = (mass(N) + 1e-7) / (mass(G) + 1e-7)
  j_to_k = jnp.tri(BINS, dtype=bool).T
  largest = jax.lax.cummax(
    jnp.where(j_to_k, average, -jnp.inf), axis=1, reverse=True
  )
  return jnp.where(j_to_k, largest, jnp.inf).min(axis=0)


def posterior(
  histograms: dict[str, jax.Array],
  noise_rate: jax.Array | float,
  score: jax.Array,
) -> jax.Array:
  """P(clean | x) = 1 - eta r(x), float32 in [0, 1], of scores of any shape."""
  w = jnp.clip(1.0 - noise_rate * ratio(histograms), 0.0, 1.0)
  return jnp.interp(jax.lax.stop_gradient(score), bin_centres(), w)


def bin_centres() -> jax.Array:
  """The scores in the middle of the bins, float32 [BINS]."""
  low, high = RANGE
  return low + (high - low) / BINS * (jnp.arange(BINS) + 0.5)


def _density(counts):
  return counts / jnp.maximum(counts.sum(), 1e-6)


def _place(scores):
  """In bins, as a real number."""
  low, high = RANGE
  scores = jax.lax.stop_gradient(scores).astype(jnp.float32)
  return (scores - low) / (high - low) * BINS


def _counts(scores):
  place = jnp.clip(_place(scores), 0, BINS - 1).astype(jnp.int32)
  return jnp.zeros((BINS,), jnp.float32).at[place.reshape(-1)].add(1.0)
