"""The training loop: steps, evaluations, hooks and checkpoints."""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from calince_jax.data.input.corrupt_records import CorruptRecordLog
from calince_jax.runtime import checkpoint, distributed, sharding
from calince_jax.runtime.preemption import Preemption
from calince_jax.runtime.watchdog import Watchdog
from calince_jax.training import hooks, setup
from calince_jax.training.metric_logger import MetricLogger
from calince_jax.training.profiling import StepProfile
from calince_jax.training.wall_time import WallTime

COMPILE_SECONDS = 3600.0  # that one process may compile longer than another


@dataclasses.dataclass
class Run:
  """What a run has besides its state.

  Attributes:
    config: the whole configuration.
    mesh: the devices of all processes.
    training: the model and its compiled step.
    batches: this process's rows of each batch, beginning after the state's
      step.
    corrupt_records: log of the records that could not be read.
    checkpoints: Orbax's CheckpointManager.
    logger: of process 0; None in the other processes.
    retrieval: the in-training evaluation; None where nothing is evaluated.
    pair_statistics: pairs that were collected and not yet summed up when the
      state was saved.
    preemption: whether this process was asked to end.
    watchdog: receives the progress of each step.
    times: where the time of this process goes.
    profile: of the steps that are to be traced; None: of none.
  """

  config: dict[str, Any]
  mesh: Any
  training: setup.Training
  batches: Iterator[dict[str, np.ndarray]]
  corrupt_records: CorruptRecordLog
  checkpoints: Any
  logger: MetricLogger | None
  retrieval: Any
  pair_statistics: dict[str, np.ndarray]
  preemption: Preemption
  watchdog: Watchdog
  times: WallTime
  profile: StepProfile | None = None


def loop(run: Run, state: Any) -> Any:
  """Trains until `total_steps`, or until a process is asked to end.

  The metrics of step n are read after step n + 1 was dispatched, so that the
  devices do not wait for the host. Before a checkpoint the hooks have processed
  every step up to it, so that a run resumed there logs the same. All processes
  end at the same step, and the last state is saved.

  Returns:
    The last state.
  """
  config, total = run.config, run.config["total_steps"]
  pairs = hooks.CollectPairs(run.pair_statistics if run.retrieval else {})
  run_hooks = open_hooks(run, pairs)
  pending: collections.deque = collections.deque()  # not yet seen by the hooks
  step = first_step = int(state.step)
  ending, train_step = False, None
  run.times.started()
  while step < total and not ending:
    batch = next_batch(run)
    if train_step is None:
      train_step = compile_step(run, state, batch)
    step += 1
    if run.profile:
      run.profile.before(step, state.step)
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      state, metrics = train_step(state, batch)
    run.times.dispatched(metrics["loss"])
    if run.profile:
      run.profile.after(step, state.step)
    if step == first_step + 1 and run.logger:
      jax.block_until_ready(metrics)
      run.logger.first_step_done()
    pending.append((step, metrics, evaluate(run, step, state)))
    saves = step % config["checkpoint_every"] == 0 or step == total
    while len(pending) > (0 if saves or ending else 1):
      result = step_result(config, *pending.popleft(), state)
      for hook in run_hooks:
        ending |= hook(result)
      saves |= ending
    if saves:
      with run.times.lost_to("checkpoint"):
        checkpoint.save(run.checkpoints, step, state, config, pairs.collected())
    run.watchdog.progress(f"step {step}")
  if run.profile:
    run.profile.close(step)
  return state


def open_hooks(run: Run, pairs: hooks.CollectPairs) -> list[hooks.Hook]:
  """The hooks of this process, in the order in which they are called."""
  config, logger = run.config, run.logger
  listed: list[hooks.Hook] = [
    hooks.end_if_preempted,
    hooks.SkippedSteps(config, run.checkpoints, logger, pairs),
  ]
  if run.retrieval:
    listed.append(pairs)
  if logger:
    listed += [
      hooks.LossSpikes(config["alarms"]["loss_spike"], logger),
      hooks.MetricRow(
        logger, run.training.schedule, run.corrupt_records, pairs
      ),
      hooks.CollapsedWeights(config, logger),
      hooks.CalibrationBegins(config["total_steps"], logger),
    ]
    alarm = config["alarms"]["no_learning_steps"]
    if alarm and config["objective"]["contrastive_weight"]:
      # While the learning rate still rises it is too early to say.
      rising = config["optimizer"]["warmup_share"] * config["total_steps"]
      alarm = max(alarm, round(rising))
      listed.append(hooks.NoLearning(alarm, config["batch_size"], logger))
  if logger and run.retrieval:
    listed.append(hooks.EvaluationLine(logger, run.retrieval.chance, pairs))
  return listed


def step_result(
  config: dict[str, Any],
  step: int,
  metrics: dict[str, Any],
  evaluation: dict[str, float],
  state: Any,
) -> hooks.StepResult:
  """Fetches the metrics of a step to the host."""
  metrics = jax.device_get(metrics)
  return hooks.StepResult(
    step=step,
    pairs=metrics.pop("pairs"),
    preempted=bool(metrics.pop("preempted")),
    metrics=metrics,
    evaluation=evaluation,
    logged=step % config["log_every"] == 0 or step == config["total_steps"],
    state=state,
  )


def next_batch(run: Run) -> dict[str, jax.Array]:
  """The next global batch; the preemption flag is one of its fields."""
  with run.times.waiting_for_data():
    rows = next(run.batches)
    flag = run.preemption.requested
    rows["preempted"] = np.full(len(rows["pair_index"]), flag)
    return sharding.to_global(rows, run.mesh)


def compile_step(run: Run, state: Any, batch: dict[str, jax.Array]) -> Callable:
  """The compiled train step, once every process has it.

  It is compiled for these shapes and these places alone: other ones are an
  error, so that no later step can spend its time on compiling.

  A process that has it in its cache would otherwise wait for the others inside
  the step, where a cluster of CPUs gives up after half a minute.
  """
  with run.times.lost_to("compile"):
    compiled = run.training.step.lower(state, batch).compile()
    run.watchdog.progress("compiling the step")
    distributed.barrier("compiled", COMPILE_SECONDS)
  return compiled


def evaluate(run: Run, step: int, state: Any) -> dict[str, float]:
  """Metrics of the in-training evaluation after `step`; {} if none is due.

  Its time does not count as training.
  """
  config = run.config
  if not run.retrieval or (
    step % config["evaluate_every"] and step != config["total_steps"]
  ):
    return {}
  jax.block_until_ready(state.step)
  run.watchdog.progress("training, before an evaluation")
  with run.times.lost_to("evaluation"):
    return run.retrieval.metrics(state.ema_params)
