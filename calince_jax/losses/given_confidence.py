"""Confidences that start from what was known of each pair before training.

A table gives a pair its prior probability q of being matched; the alignment
score x of training is evidence, with the likelihood ratio

    L(x) = f_matched(x) / f_negative(x) = (1 - eta r(x)) / ((1 - eta) r(x))

of the mixture in density_ratio.py. By Bayes' rule, in log-odds,

    logit P = logit q + t log L(x)

where t in [0, 1] is how far x is trusted: the table's q stands in place of the
prior 1 - eta that all pairs share. This takes q and x as independent given
whether the pair is matched; t < 1 counts the evidence for less than it says, as
in Bissiri, Holmes and Walker (2016). A table that is certain of a pair could
not be corrected, so q is kept t DOUBT away from 0 and 1. docs/method.md
"""

import jax
import jax.numpy as jnp

from calince_jax.losses import density_ratio

# What evidence that is fully trusted leaves of a table's certainty: a P(fits)
# of 1 counts as 0.95, which strong evidence can overcome.
DOUBT = 0.05


def combine(
  histograms: dict[str, jax.Array],
  x: jax.Array,
  given: jax.Array,
  *,
  noise_rate: jax.Array | float | None,
  largest_power: float,
  trust: jax.Array | None,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  """The confidences in pairs, and the power of them that is their weight.

    P = q L^t / (q L^t + 1 - q),    w = P^(1 + t (p - 1))
    q = min(max(given, t DOUBT), 1 - t DOUBT)

  With t = 0 both are `given` exactly. Where trust is earned, eta and t are
  those of density_ratio.earned_weights, and p is the larger one of 1 and its
  power: P is never flattened.

  Args:
    histograms: see density_ratio.update_histograms.
    x: alignment scores of the pairs, float32 [N]; no gradient.
    given: float32 [N] in [0, 1].
    noise_rate: eta in [0, 1), where it is known; None: estimated.
    largest_power: the largest p that is tried; with `trust`, p itself.
    trust: t, float32 [] in [0, 1]; None: earned.

  Returns:
    P, float32 [N] in [0, 1]; 1 + t (p - 1), float32 []; and, where trust is
    earned, the metrics of density_ratio.earned_weights, else none.
  """
  if trust is None:
    _, eta, metrics = density_ratio.earned_posterior(
      histograms, noise_rate=noise_rate, largest_power=largest_power
    )
    t, p = metrics["trust"], jnp.maximum(metrics["sharpness"], 1.0)
  else:
    estimate = density_ratio.estimate_noise_rate(histograms)
    eta = estimate if noise_rate is None else noise_rate
    t, p, metrics = trust, largest_power, {}
  evidence = jnp.exp(t * log_likelihood_ratio(histograms, eta, x))
  q = jnp.clip(given, t * DOUBT, 1.0 - t * DOUBT)
  for_it, against = q * evidence, 1.0 - q
  return for_it / (for_it + against), 1.0 + t * (p - 1.0), metrics


def log_likelihood_ratio(
  histograms: dict[str, jax.Array], noise_rate: jax.Array | float, x: jax.Array
) -> jax.Array:
  """log L(x), interpolated between the bins' centres.

  Between log e and -log e, with e of density_ratio.sampling_error: no score
  says more than so many pairs can. So it is 0 without histograms.

  Args:
    histograms: see density_ratio.update_histograms.
    noise_rate: eta in [0, 1).
    x: alignment scores of any shape; no gradient flows into them.

  Returns:
    float32 of the shape of x.
  """
  r = density_ratio.ratio(histograms)
  matched = jnp.maximum(1.0 - noise_rate * r, 0.0)
  log_L = jnp.log(matched) - jnp.log1p(-jnp.float32(noise_rate)) - jnp.log(r)
  limit = -jnp.log(density_ratio.sampling_error(histograms))
  log_L = jnp.clip(log_L, -limit, limit)
  x = jax.lax.stop_gradient(x)
  return jnp.interp(x, density_ratio.bin_centres(), log_L)
