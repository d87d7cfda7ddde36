"""AdamW with warm-up and cosine decay, gradient clipping and a decay mask."""

from typing import Any

import jax
import optax


def learning_rate_schedule(
  peak: float, total_steps: int, warmup_steps: int
) -> optax.Schedule:
  """Linear from 0 to `peak`, then cosine to 0 at `total_steps`."""
  if not 0 <= warmup_steps < total_steps:
    raise ValueError(
      f"warmup_steps={warmup_steps} must be less than total_steps={total_steps}"
    )
  return optax.warmup_cosine_decay_schedule(
    0.0, peak, warmup_steps, total_steps
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
  schedule: optax.Schedule,
  *,
  weight_decay: float,
  max_grad_norm: float,
  b1: float = 0.9,
  b2: float = 0.98,
) -> optax.GradientTransformation:
  """Clipping by the global norm, then AdamW (Loshchilov and Hutter, 2019)."""
  return optax.chain(
    optax.clip_by_global_norm(max_grad_norm),
    optax.adamw(
      schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decay_mask
    ),
  )
