"""Running mean and deviation of what batches bring, in the training state."""

import jax
import jax.numpy as jnp

# Values that differ less than this are rounding, not evidence.
SMALLEST_STD = 1e-6


def init_moments() -> dict[str, jax.Array]:
  """The running moments of nothing yet: float32 scalars, all 0."""
  return {
    name: jnp.zeros((), jnp.float32) for name in ("batches", "mean", "variance")
  }


def update_moments(
  moments: dict[str, jax.Array], values: jax.Array, decay: float
) -> dict[str, jax.Array]:
  """Adds the batch's values, any shape; each older batch counts `decay` less.

  The weights are decay^age / sum decay^age, which is Adam's bias correction
  (Kingma and Ba, 2015): after one batch its own mean and variance. The
  variance is kept about the mean, so that close values do not cancel.
  """
  values = jax.lax.stop_gradient(values).astype(jnp.float32)
  batches = decay * moments["batches"] + 1.0
  new, step = 1.0 / batches, values.mean() - moments["mean"]
  within = (1.0 - new) * moments["variance"] + new * values.var()
  return {
    "batches": batches,
    "mean": moments["mean"] + new * step,
    "variance": within + new * (1.0 - new) * step**2,
  }


def mean_and_std(
  moments: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """mu and sigma (population), float32 []; 0 and 0 before the first batch."""
  return moments["mean"], jnp.sqrt(moments["variance"])


def standardise(moments: dict[str, jax.Array], values: jax.Array) -> jax.Array:
  """(x - mu) / sigma, float32 of any shape; no gradient."""
  mean, std = mean_and_std(moments)
  values = jax.lax.stop_gradient(values).astype(jnp.float32)
  return (values - mean) / jnp.maximum(std, SMALLEST_STD)
