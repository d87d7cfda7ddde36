"""Estimates noise rate and P(matched | x) from histograms of alignment scores.

A mismatched pair is distributed like a uniform negative, of which there are K
for each given pair. So the alignment scores x of the given pairs are a mixture

    f_given(x) = (1 - eta) f_matched(x) + eta f_negative(x)

and with r(x) = f_negative(x) / f_given(x)

    P(matched | x) = 1 - eta r(x),      eta <= 1 / sup_x r(x).

r is estimated from two running histograms under one assumption: it does not
increase with x, so a higher alignment score never makes a mismatch more
likely. This is isotonic regression (Barlow et al., 1972; here by its min-max
formula). The posterior is calibrated whatever the scale of x is. The bound on
eta (mixture proportion estimation: Blanchard, Lee and Scott, JMLR 2010) is
tight if no matched pair has a low alignment score. docs/method.md
"""

import jax
import jax.numpy as jnp

# Alignment scores are standardised by the negatives' mean and standard
# deviation, so negatives lie around 0 and matched pairs above. Values outside
# the range are counted in the outermost bins.
RANGE = (-6.0, 18.0)
BINS = 128
# The noise rate is estimated only where at least this share of the negatives
# lies below x: further out it would be a quotient of two small counts.
SMALLEST_TAIL = 0.2
# An untrained scorer cannot tell the two distributions apart. The estimate
# then is near 1, and every pair's confidence would be 0.
LARGEST_NOISE_RATE = 0.9


def init_histograms() -> dict[str, jax.Array]:
  """Empty histograms of the alignment scores: two float32 [BINS]."""
  empty = jnp.zeros((BINS,), jnp.float32)
  return {"given": empty, "negative": empty}


def update_histograms(
  histograms: dict[str, jax.Array],
  given: jax.Array,
  negatives: jax.Array,
  decay: float,
) -> dict[str, jax.Array]:
  """Adds the alignment scores of a global batch.

  Args:
    histograms: `given` and `negative`, float32 [BINS].
    given: x of the given pairs, of any shape and float dtype; no gradient.
    negatives: x of the negatives, likewise; each counts as one.
    decay: in [0, 1]; the counts of all older batches are multiplied by it.
  """
  return {
    "given": decay * histograms["given"] + _counts(given),
    "negative": decay * histograms["negative"] + _counts(negatives),
  }


def estimate_noise_rate(histograms: dict[str, jax.Array]) -> jax.Array:
  """eta = inf_x F_given(x) / F_negative(x), float32 [] in [0, 0.9].

  0.9, the cap, while the histograms are empty or alike.
  """
  F_given = jnp.cumsum(_density(histograms["given"]))
  F_negative = jnp.cumsum(_density(histograms["negative"]))
  ratio = F_given / jnp.maximum(F_negative, 1e-6)
  ratio = jnp.where(F_negative >= SMALLEST_TAIL, ratio, 1.0)
  return jnp.clip(ratio.min(), 0.0, LARGEST_NOISE_RATE)


def ratio(histograms: dict[str, jax.Array]) -> jax.Array:
  """r = f_negative / f_given in each bin, float32 [BINS], not increasing.

    r_i = min_{j <= i} max_{k >= i} negative(j..k) / given(j..k)

  where (j..k) is the share of a histogram in the bins j to k. 1 in every bin
  while the histograms are empty.
  """
  G = jnp.cumsum(_density(histograms["given"]))
  N = jnp.cumsum(_density(histograms["negative"]))

  def mass(F):  # [j, k]
    return F[None, :] - jnp.pad(F, (1, 0))[:-1, None]

  # A share of less than one pair in a million has no influence.
  average = (mass(N) + 1e-7) / (mass(G) + 1e-7)
  j_to_k = jnp.tri(BINS, dtype=bool).T
  largest = jax.lax.cummax(
    jnp.where(j_to_k, average, -jnp.inf), axis=1, reverse=True
  )
  return jnp.where(j_to_k, largest, jnp.inf).min(axis=0)


def matched_posterior(
  histograms: dict[str, jax.Array],
  noise_rate: jax.Array | float,
  x: jax.Array,
) -> jax.Array:
  """P(matched | x) = 1 - eta r(x), interpolated between the bins' centres.

  Args:
    histograms: see `update_histograms`.
    noise_rate: eta in [0, 1).
    x: alignment scores of any shape; no gradient flows into them.

  Returns:
    float32 in [0, 1], of the shape of x.
  """
  w = jnp.clip(1.0 - noise_rate * ratio(histograms), 0.0, 1.0)
  return jnp.interp(jax.lax.stop_gradient(x), bin_centres(), w)


def bin_centres() -> jax.Array:
  """The alignment scores at the centres of the bins, float32 [BINS]."""
  low, high = RANGE
  return low + (high - low) / BINS * (jnp.arange(BINS) + 0.5)


def _density(counts):
  return counts / jnp.maximum(counts.sum(), 1e-6)


def _counts(x):
  """How many of the alignment scores lie in each bin, float32 [BINS]."""
  low, high = RANGE
  x = jax.lax.stop_gradient(x).astype(jnp.float32)
  position = (x - low) / (high - low) * BINS
  bins = jnp.clip(position, 0, BINS - 1).astype(jnp.int32)
  return jnp.zeros((BINS,), jnp.float32).at[bins.reshape(-1)].add(1.0)
