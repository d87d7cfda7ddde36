"""Running mean and standard deviation over batches, in the training state."""

import jax
import jax.numpy as jnp

# Values that differ by less than this differ by rounding only.
SMALLEST_STD = 1e-6


def init_moments() -> dict[str, jax.Array]:
  """The moments before the first batch: float32 scalars, all 0."""
  return {
    name: jnp.zeros((), jnp.float32) for name in ("batches", "mean", "variance")
  }


def update_moments(
  moments: dict[str, jax.Array], values: jax.Array, decay: float
) -> dict[str, jax.Array]:
  """Adds a batch's values to the moments.

  A batch's weight is decay^age / sum decay^age, which is Adam's bias correction
  (Kingma and Ba, 2015): after one batch the moments are its own mean and
  variance. The variance is accumulated about the mean, because E[x^2] - E[x]^2
  would cancel.

  Args:
    moments: see `init_moments`.
    values: of any shape and float dtype; no gradient flows into them.
    decay: in [0, 1]; the weight of all older batches is multiplied by it.
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
  """(x - mu) / sigma, float32, of values of any shape; no gradient."""
  mean, std = mean_and_std(moments)
  values = jax.lax.stop_gradient(values).astype(jnp.float32)
  return (values - mean) / jnp.maximum(std, SMALLEST_STD)
