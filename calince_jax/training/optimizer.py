"""AdamW with warm-up and cosine decay, gradient clipping and a decay mask."""

from typing import Any

import jax
import optax

from calince_jax.config import Optimizer


def learning_rate_schedule(
  settings: Optimizer, total_steps: int
) -> optax.Schedule:
  """Linear from 0 to the peak, then cosine to 0 at `total_steps`.

  Raises:
    ValueError: the warm-up leaves no step to the decay.
  """
  warmup_steps = round(settings.warmup_share * total_steps)
  if warmup_steps >= total_steps:
    raise ValueError(
      f"warmup_share={settings.warmup_share} is {warmup_steps} steps, and must"
      f" be less than total_steps={total_steps}"
    )
  return optax.warmup_cosine_decay_schedule(
    0.0, settings.learning_rate, warmup_steps, total_steps
  )


def decay_mask(params: Any) -> Any:
  """True for the matrices: no decay of biases, norms, scales, positions.

  The layers of a scanned stack are stacked along a leading axis, so the name
  decides, not the number of axes.
  """

  def decayed(path, _):
    return path[-1].key in ("kernel", "embedding")

  return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(
  settings: Optimizer, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Clipping by the global norm, then AdamW (Loshchilov and Hutter, 2019)."""
  return optax.chain(
    optax.clip_by_global_norm(settings.max_grad_norm),
    optax.adamw(
      schedule,
      b1=settings.b1,
      b2=settings.b2,
      weight_decay=settings.weight_decay,
      mask=decay_mask,
    ),
  )
