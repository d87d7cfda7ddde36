"""The loop over steps: train, watch, log, save."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from calince_jax import build, checkpoint, sharding
from calince_jax.errors import UserError
from calince_jax.monitor import Monitor


def loop(
  config: dict[str, Any],
  mesh: Any,
  training: build.Training,
  state: Any,
  batches: Iterator[dict[str, np.ndarray]],
  manager: Any,
  monitor: Monitor | None,
  retrieval: Any,
) -> Any:
  """Trains until `total_steps`; returns the last state.

  Step n's metrics are read after step n + 1 has been dispatched, so that the
  devices do not wait for the log.
  """
  total, first_step = config["total_steps"], int(state.step)
  pairs = open_pairs(retrieval)
  previous = None
  for step in range(first_step + 1, total + 1):
    with monitor.waiting() if monitor else contextlib.nullcontext():
      batch = sharding.to_global(next(batches), mesh)
    state, metrics = training.step(state, batch)
    if step == first_step + 1 and monitor:
      jax.block_until_ready(metrics)
      monitor.first_step_done()
    found = {}
    if retrieval and (step % config["evaluate_every"] == 0 or step == total):
      found = evaluate(state, retrieval, monitor)
    for done, seen, judged in ([previous] if previous else []) + (
      [(step, metrics, found)] if step == total else []
    ):
      check_finite(config, manager, state, seen)
      of_pairs = seen.pop("pairs")
      if pairs:
        pairs.add(jax.device_get(of_pairs))
      if judged:
        judged |= pairs.summary()
      if monitor and (done % config["log_every"] == 0 or done == total):
        rate = training.schedule(done - 1)
        monitor.log(
          done, jax.device_get(seen) | {"learning_rate": rate} | judged
        )
        if judged:
          monitor.evaluated(done, judged, retrieval.chance())
    previous = (step, metrics, found)
    if step % config["checkpoint_every"] == 0:
      checkpoint.save(manager, step, state, config)
  return state


def open_pairs(retrieval: Any) -> Any:
  """The PairWatch of the run, None where nothing is evaluated."""
  if retrieval is None:
    return None
  from calince_jax.watch import PairWatch

  return PairWatch()


def evaluate(
  state: Any, retrieval: Any, monitor: Monitor | None
) -> dict[str, float]:
  """What RetrievalWatch says now; its time is not that of training."""
  jax.block_until_ready(state.step)
  with monitor.paused() if monitor else contextlib.nullcontext():
    return retrieval.metrics(state.ema_params)


def check_finite(
  config: dict[str, Any], manager: Any, state: Any, metrics: dict[str, Any]
) -> None:
  """Ends the run after too many steps in a row that were not finite."""
  bad = int(metrics["bad_steps"])
  if bad >= config["max_bad_steps"]:
    step = int(state.step)
    checkpoint.save(manager, step, state, config)
    manager.wait_until_finished()
    raise UserError(
      f"{bad} steps in a row had a loss or gradient that is not finite; the"
      f" last good parameters are saved as step {step}; train in another"
      " --workdir with a lower config.optimizer.learning_rate"
    )
