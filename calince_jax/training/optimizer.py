"""AdamW with warm-up and cosine decay, gradient clipping and a decay mask.

Parameters may learn slower or not at all: by a factor for the paths that an
expression is found in, by their depth in a tower, or frozen.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from calince_jax.config import Optimizer
from calince_jax.errors import UserError
from calince_jax.runtime.sharding import path_name

# What stands before the first block of a tower.
_INPUTS = re.compile(
  r"_encoder/(patch_embedding|class_token|\w*position|embedding|input_norm)"
)
_TIME = re.compile(r"_encoder/time_position")  # learned anew, as what follows
_BLOCK = re.compile(
  r"(?P<stack>\w+_encoder/(spatial|transformer))/block(s|_(?P<index>\d+))/"
)


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


def multipliers(settings: Optimizer, params: Any) -> Any:
  """The factor of each parameter's learning rate, a tree of float32.

  Each is a scalar, or [depth, 1, ...] for the blocks of a scanned stack. In a
  tower of `depth` blocks with d = layer_decay, block i (from 0) has d^(depth -
  i), what stands before the blocks d^(depth + 1), and what comes after them 1
  (Clark et al., 2020; Bao et al., 2022). Times the first match of
  `multipliers`; 0 where `frozen` is found, and with `trained_blocks` for all
  but so many last blocks of a tower and what comes after them.
  """
  names = {
    path_name(path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  depths = _depths(names)

  def of(path, leaf):
    name = path_name(path)
    if settings.frozen and re.search(settings.frozen, name):
      return jnp.float32(0)
    matching = (
      m for pattern, m in settings.multipliers if re.search(pattern, name)
    )
    above = _above(name, leaf, depths)
    factor = next(matching, 1.0) * settings.layer_decay**above
    if settings.trained_blocks:
      factor = jnp.where(above <= settings.trained_blocks, factor, 0.0)
    return factor

  return jax.tree_util.tree_map_with_path(of, params)


def _depths(shapes):
  """{tower: its number of blocks}; of space, not of time."""
  depths = {}
  for name, shape in shapes.items():
    if block := _BLOCK.search(name):
      last = shape[0] if block["index"] is None else int(block["index"]) + 1
      tower = name.split("/")[0]
      depths[tower] = max(depths.get(tower, 0), last)
  return depths


def _above(name, leaf, depths):
  """How many layers of its tower lie above a parameter, float32."""
  depth = depths.get(name.split("/")[0], 0)
  block = _BLOCK.search(name)
  if block and block["index"] is None:
    above = depth - jnp.arange(depth, dtype=jnp.float32)
    return above.reshape(-1, *[1] * (len(leaf.shape) - 1))
  if block:
    return jnp.float32(depth - int(block["index"]))
  first = _INPUTS.search(name) and not _TIME.search(name)
  return jnp.float32(depth + 1 if first else 0)


def check_patterns(settings: Optimizer, params: Any) -> None:
  """UserError where an expression is found in no parameter's path."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  names = [path_name(path) for path, _ in leaves]
  patterns = [("multipliers", pattern) for pattern, _ in settings.multipliers]
  patterns += [("frozen", settings.frozen)]
  for key, pattern in patterns:
    if pattern and not any(re.search(pattern, name) for name in names):
      raise UserError(
        f"config.optimizer.{key}: {pattern!r} is found in no parameter's path,"
        f" such as {names[0]}"
      )


def make_optimizer(
  settings: Optimizer, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Clipping by the global norm, then AdamW (Loshchilov and Hutter, 2019).

  Gradients of frozen parameters do not count in the norm.
  """
  steps = [
    optax.clip_by_global_norm(settings.max_grad_norm),
    optax.adamw(
      schedule,
      b1=settings.b1,
      b2=settings.b2,
      weight_decay=settings.weight_decay,
      mask=decay_mask,
    ),
  ]
  changed = settings.multipliers or settings.frozen or settings.trained_blocks
  if changed or settings.layer_decay != 1:
    steps = [_frozen(settings), *steps, _multiplied(settings)]
  return optax.chain(*steps)


def _frozen(settings):
  """Gradients, 0 where a parameter is frozen."""

  def update(updates, params):
    return jax.tree.map(
      lambda m, x: jnp.where(m == 0, jnp.zeros_like(x), x),
      multipliers(settings, params),
      updates,
    )

  return optax.stateless(update)


def _multiplied(settings):
  """Updates times their factors."""

  def update(updates, params):
    factors = multipliers(settings, params)
    return jax.tree.map(lambda m, x: m * x, factors, updates)

  return optax.stateless(update)
