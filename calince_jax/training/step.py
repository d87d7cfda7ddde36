"""The training state and one step of it. No TensorFlow, no configuration."""

import functools
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from calince_jax.losses import calibration
from calince_jax.losses.objective import Objective, co_training_loss
from calince_jax.losses.predictive import reduce_prediction
from calince_jax.models.cali_nce import CaliNCE, init_params
from calince_jax.runtime import sharding
from calince_jax.training.grad_cache import encode_in_chunks

# The running means of embeddings cover about the last ten batches.
CENTRE_DECAY = 0.9


@flax.struct.dataclass
class TrainState:
  """All that a run is: saved, restored and sharded as one tree."""

  step: jax.Array  # int32 [], steps done; also the position in the data
  params: Any
  opt_state: Any
  ema_params: Any  # exponential moving average of params
  calibration: dict[str, Any]  # statistics of the alignment scores
  random_key: jax.Array  # uint32 [2]; with the step, all randomness
  bad_steps: jax.Array  # int32 [], non-finite steps in a row
  skipped_steps: jax.Array  # int32 [], non-finite steps in all


def init_state(
  model: CaliNCE,
  optimizer: optax.GradientTransformation,
  num_pairs: int,
  seed: jax.Array | int,
) -> TrainState:
  """A fresh state; run it under `jax.jit` to create it already sharded.

  Args:
    model: see models/cali_nce.py.
    optimizer: from optimizer.py.
    num_pairs: of those whose confidences are averaged over epochs, see
      calibration.update_memory; 0: none.
    seed: of the parameters and of all randomness in training. An argument of
      the compiled function, so that another seed is not another program.
  """
  params = init_params(model, seed)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    # A copy: donated buffers may not be shared.
    ema_params=jax.tree.map(jnp.copy, params),
    calibration=calibration.init_state(num_pairs),
    random_key=jax.random.key_data(jax.random.key(seed)),
    bad_steps=jnp.zeros((), jnp.int32),
    skipped_steps=jnp.zeros((), jnp.int32),
  )


def begun_from(
  optimizer: optax.GradientTransformation, state: TrainState
) -> TrainState:
  """`state` with the optimizer and the average as its parameters begin them."""
  return state.replace(
    opt_state=optimizer.init(state.params),
    ema_params=jax.tree.map(jnp.copy, state.params),
  )


def make_train_step(
  model: CaliNCE,
  optimizer: optax.GradientTransformation,
  objective: Objective,
  *,
  ema_decay: float,
  grad_cache_chunks: int = 1,
  mesh: Mesh | None = None,
) -> Callable:
  """The function (state, batch) -> (state, metrics), to be jitted.

  A step whose loss or gradient is not finite leaves everything as it was, but
  for `step` and the counters of such steps, and says so in
  `metrics["skipped"]`.

  Args:
    model: see models/cali_nce.py.
    optimizer: from optimizer.py.
    objective: the mix of losses.
    ema_decay: in [0, 1); the average starts faster, as (1 + n) / (10 + n).
    grad_cache_chunks: in how many chunks the batch is encoded, see
      grad_cache.py; the losses are of the whole batch all the same.
    mesh: over which the batch is spread; None: one device.

  Returns:
    The function. `metrics` holds scalars, a histogram, and `pairs`: for each
    pair of the global batch [B] its `pair_index`, `matched`, `alignment_score`,
    `confidence`, `weight` and whether all of it is `finite`, see
    losses/objective.py.
  """

  def encode(params, ema_params, batch, key):
    encoded = model.apply(
      {"params": params},
      batch,
      with_prediction=bool(objective.predictive_weight),
      deterministic=not model.config.dropout,
      rngs={"dropout": key},
      method="encode",
    )
    if objective.predictive_weight:
      encoded["prediction"] = reduce_prediction(encoded["prediction"])
    if objective.needs_momentum:
      encoded |= momentum_embeddings(model, ema_params, batch)
    return encoded

  def loss_of(params, state, batch, keys):
    if objective.predictive_weight:
      masked = model.apply(
        {"params": params},
        batch,
        rngs={"masking": keys["masking"]},
        method="choose_masked",
      )
      batch = batch | {"masked": masked}
    encoded = encode_in_chunks(
      functools.partial(encode, params, state.ema_params),
      batch,
      keys["dropout"],
      num_chunks=grad_cache_chunks,
      mesh=mesh,
    )
    related = model.apply(
      {"params": params},
      encoded.pop("video"),
      encoded.pop("text"),
      batch["pair_index"],
      num_negatives=objective.num_negatives,
      with_correspondence=bool(objective.correspondence_weight),
      rngs={"negatives": keys["negatives"]},
      method="relate",
    )
    loss, aux = co_training_loss(
      objective, related | encoded, batch, state.calibration, state.step
    )
    names = ("video_centre", "text_centre")
    aux["centres"] = {name: related[name] for name in names if name in related}
    return loss, aux

  def train_step(state: TrainState, batch: dict[str, jax.Array]):
    key = jax.random.wrap_key_data(state.random_key)
    key = jax.random.fold_in(key, state.step)
    streams = ("negatives", "masking", "dropout")
    keys = dict(zip(streams, jax.random.split(key, 3), strict=True))
    (loss, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(
      state.params, state, batch, keys
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    n = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + n) / (10 + n))
    params = optax.apply_updates(state.params, updates)
    params |= optax.incremental_update(
      aux["centres"],
      {name: state.params[name] for name in aux["centres"]},
      1.0 - jnp.minimum(CENTRE_DECAY, n / (n + 1.0)),
    )
    updated = {
      "params": params,
      "opt_state": opt_state,
      "ema_params": optax.incremental_update(
        params, state.ema_params, 1.0 - decay
      ),
      "calibration": aux["calibration"],
    }
    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    kept = {name: getattr(state, name) for name in updated}
    updated = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), updated, kept
    )
    state = state.replace(
      step=state.step + 1,
      bad_steps=jnp.where(finite, 0, state.bad_steps + 1),
      skipped_steps=state.skipped_steps + ~finite,
      **updated,
    )
    metrics = aux["metrics"] | {
      "grad_norm": grad_norm,
      "duplicate_rate": duplicate_rate(batch["text_ids"]),
      "skipped": ~finite,
      "bad_steps": state.bad_steps,
      "skipped_steps": state.skipped_steps,
      "pairs": aux["pairs"],
    }
    return state, metrics

  return train_step


def momentum_embeddings(
  model: CaliNCE, ema_params: Any, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  """`momentum_video`, `momentum_text` [B, D] of the averaged parameters."""
  variables = {"params": ema_params}
  video = model.apply(variables, batch["video"], method="encode_video")
  text = model.apply(
    variables, batch["text_ids"], batch["text_mask"], method="encode_text"
  )
  return {
    "momentum_video": video["embedding"],
    "momentum_text": text["embedding"],
  }


def shard_train_step(step: Callable, layout: Any, mesh: Mesh) -> Callable:
  """`step` jitted over a mesh: the state laid out by `layout` and donated.

  The batch has one more field, `preempted` bool [B]: True in the rows of a
  process that is asked to end. `metrics["preempted"]`, bool [], is then True in
  all processes, so that they end at the same step without another message.
  """

  def step_of_all(state, batch):
    rest = dict(batch)
    preempted = rest.pop("preempted").any()
    with sharding.context_of(mesh):
      state, metrics = step(state, rest)
    return state, metrics | {"preempted": preempted}

  return jax.jit(
    step_of_all,
    donate_argnums=0,
    in_shardings=(layout, sharding.batch_sharding(mesh)),
    out_shardings=(layout, sharding.replicated(mesh)),
  )


def duplicate_rate(text_ids: jax.Array) -> jax.Array:
  """The share of texts that stand in the batch more than once, float32 [].

  Two equal texts are false negatives of each other. [B, L] -> [].
  """
  # Equal rows have equal hashes, and sorting brings those together. Two hashes
  # of 32 bits: that any two of 65,536 different rows collide has probability
  # 1e-10. Sorting by all L columns would take a program of L operands.
  a, b = jax.lax.sort(_hashes(text_ids), num_keys=2)
  same = (a[1:] == a[:-1]) & (b[1:] == b[:-1])
  repeated = jnp.pad(same, (1, 0)) | jnp.pad(same, (0, 1))
  return repeated.mean()


def _hashes(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Two hashes of each row, int [B, L] -> uint32 [B].

  The sum of what MurmurHash3's 32-bit finaliser (Appleby, public domain) makes
  of each number and its place.
  """
  place = jnp.arange(rows.shape[1], dtype=jnp.uint32)

  def hashed(a, b):
    x = rows.astype(jnp.uint32) * jnp.uint32(a) + place * jnp.uint32(b)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return (x ^ (x >> 16)).sum(axis=1, dtype=jnp.uint32)

  return hashed(0x9E3779B1, 0x27D4EB2F), hashed(0x165667B1, 0xC2B2AE3D)
