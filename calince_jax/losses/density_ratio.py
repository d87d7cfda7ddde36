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
# lies below x. Further out it would be a quotient of two small counts, and too
# low, since mismatched pairs that were trained on score a little above the
# negatives.
SMALLEST_TAIL = 0.4
# The upper end of the interval allows for that much of it, in standard
# deviations of the negatives.
LEARNED = 0.2
# An untrained scorer cannot tell the two distributions apart. The estimate
# then is near 1, and every pair's confidence would be 0.
LARGEST_NOISE_RATE = 0.9
# Of the interval of the noise rate, and of the separation.
ERROR_RATE = 0.05
# The weights are the posterior's once this share of the matched pairs can be
# told from negatives; before, they are blended with 1.
FULL_TRUST = 0.5
# Powers of the posterior that are tried, and the effective share that a power
# must leave, relative to the share of matched pairs.
NUM_POWERS = 21
KEPT_SHARE = 0.95


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
  return _smallest_ratio(*_distributions(histograms))


def noise_rate_interval(
  histograms: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """What the noise rate may be, the lower and the upper end, two float32 [].

    t (inf_x (F_given(x) - e) / F_negative(x) - (1 - s) / 2),
    inf_x (F_given(x) + e) / F_negative(x - d),

  with e of `sampling_error`, s of `separation` and t of `earned_weights`.

  Each end allows for more than the sampling error. The lower one: matched pairs
  may score as low as negatives. Nothing but an assumption bounds their share
  (that no caption is wrong is always consistent with the scores): here, half of
  the matched pairs that are not separated. The upper one: mismatched pairs may
  score higher than negatives, by d = LEARNED standard deviations, because the
  model was trained on them. [0, 0.9] while the histograms are empty.
  """
  F_given, F_negative = _distributions(histograms)
  e = sampling_error(histograms)
  s = separation(histograms)
  low = _smallest_ratio(F_given - e, F_negative) - (1.0 - s) / 2.0
  low = jnp.maximum(_trust(s) * low, 0.0)
  mean = (bin_centres() * _density(histograms["negative"])).sum()
  square = (bin_centres() ** 2 * _density(histograms["negative"])).sum()
  d = LEARNED * jnp.sqrt(jnp.maximum(square - mean**2, 0.0))
  learned = jnp.interp(bin_centres() - d, bin_centres(), F_negative)
  return low, _smallest_ratio(F_given + e, learned)


def sampling_error(histograms: dict[str, jax.Array]) -> jax.Array:
  """e with P(sup_x |F_observed - F| > e) <= ERROR_RATE, float32 [].

  Dvoretzky, Kiefer and Wolfowitz, with the constant of Massart (1990), for the
  two distributions together. Negatives share videos and texts, so they count
  as no more than the given pairs. 1 while there is nothing.
  """
  n = jnp.maximum(histograms["given"].sum(), 1.0)
  e = jnp.sqrt(jnp.log(2.0 / ERROR_RATE) / (2.0 * n))
  return jnp.minimum(e, 1.0)


def separation(histograms: dict[str, jax.Array]) -> jax.Array:
  """How far given pairs are told from negatives beyond error, float32 [0, 1].

    max(0, sup_x [F_negative(x) - F_given(x)] - 2 e) / (1 - eta)

  F_negative - F_given = (1 - eta) (F_negative - F_matched), so 1 means that all
  matched pairs score above all negatives, and 0 that nothing is known.
  """
  F_given, F_negative = _distributions(histograms)
  difference = (F_negative - F_given).max() - 2.0 * sampling_error(histograms)
  eta = estimate_noise_rate(histograms)
  return jnp.clip(difference / (1.0 - eta), 0.0, 1.0)


def earned_weights(
  histograms: dict[str, jax.Array],
  x: jax.Array,
  *,
  noise_rate: jax.Array | float | None,
  largest_power: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weights that leave 1 only as far as the alignment scores are evidence.

    w = 1 - t + t P(matched | x)^p,    P = 1 - eta r(x)
    t = min(1, s / FULL_TRUST),        s the separation
    eta = s eta_estimate + (1 - s) inf_x (F_given(x) - e) / F_negative(x)
    p = the largest power, up to `largest_power`, with which the effective
        sample share of the given pairs, (sum w)^2 / (n sum w^2), is at least
        KEPT_SHARE (1 - eta)

  So a cautious noise rate counts while matched pairs and negatives overlap, and
  where nothing can be told apart every weight is exactly 1:
  co-training.

  Args:
    histograms: see `update_histograms`.
    x: alignment scores of the given pairs, any shape.
    noise_rate: eta, where it is known; None: estimated.
    largest_power: at least 0.

  Returns:
    The weights, float32 in [0, 1] of the shape of x; and the metrics `trust`
    (t), `sharpness` (p), `noise_rate_low` and `noise_rate_high`.
  """
  posterior, _, metrics = earned_posterior(
    histograms, noise_rate=noise_rate, largest_power=largest_power
  )
  t, p = metrics["trust"], metrics["sharpness"]
  P = jnp.interp(jax.lax.stop_gradient(x), bin_centres(), posterior)
  return 1.0 - t + t * P**p, metrics


def earned_posterior(
  histograms: dict[str, jax.Array],
  *,
  noise_rate: jax.Array | float | None,
  largest_power: float,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  """What `earned_weights` is made of: P in each bin, float32 [BINS]; eta.

  Also the metrics, t and p among them. Arguments: see there.
  """
  low, high = noise_rate_interval(histograms)
  s = separation(histograms)
  F_given, F_negative = _distributions(histograms)
  cautious = _smallest_ratio(F_given - sampling_error(histograms), F_negative)
  eta = s * estimate_noise_rate(histograms) + (1.0 - s) * cautious
  eta = eta if noise_rate is None else jnp.float32(noise_rate)
  posterior = jnp.clip(1.0 - eta * ratio(histograms), 0.0, 1.0)  # [BINS]
  density = _density(histograms["given"])
  powers = largest_power * jnp.linspace(0.0, 1.0, NUM_POWERS)
  w = posterior[None, :] ** powers[:, None]  # [NUM_POWERS, BINS]
  mean, square = w @ density, (w**2) @ density
  share = mean**2 / jnp.maximum(square, 1e-12)
  p = jnp.where(share >= KEPT_SHARE * (1.0 - eta), powers, 0.0).max()
  return (
    posterior,
    eta,
    {
      "trust": _trust(s),
      "sharpness": p,
      "noise_rate_low": low,
      "noise_rate_high": high,
    },
  )


def _trust(separation):
  return jnp.minimum(1.0, separation / FULL_TRUST)


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


def _distributions(histograms):
  """F_given and F_negative at the upper edges of the bins, float32 [BINS]."""
  return tuple(
    jnp.cumsum(_density(histograms[name])) for name in ("given", "negative")
  )


def _smallest_ratio(F_given, F_negative):
  """inf F_given / F_negative beyond SMALLEST_TAIL, in [0, 0.9]."""
  ratio = F_given / jnp.maximum(F_negative, 1e-6)
  ratio = jnp.where(F_negative >= SMALLEST_TAIL, ratio, 1.0)
  return jnp.clip(ratio.min(), 0.0, LARGEST_NOISE_RATE)


def _density(counts):
  return counts / jnp.maximum(counts.sum(), 1e-6)


def _counts(x):
  """How many of the alignment scores lie in each bin, float32 [BINS]."""
  low, high = RANGE
  x = jax.lax.stop_gradient(x).astype(jnp.float32)
  position = (x - low) / (high - low) * BINS
  bins = jnp.clip(position, 0, BINS - 1).astype(jnp.int32)
  return jnp.zeros((BINS,), jnp.float32).at[bins.reshape(-1)].add(1.0)
