"""A training run, from joining the processes to the last checkpoint."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from calince_jax import config as config_lib
from calince_jax.runtime import (
  checkpoint,
  compile_cache,
  distributed,
  folder_lock,
  run_folder,
  sharding,
)
from calince_jax.runtime.preemption import Preemption
from calince_jax.runtime.watchdog import Watchdog
from calince_jax.training import ahead_of_time, loop, profiling, setup
from calince_jax.training.metric_logger import MetricLogger
from calince_jax.training.wall_time import WallTime


def run(
  config: dict[str, Any],
  workdir: str,
  cluster: distributed.Cluster,
  profile_steps: range | None = None,
) -> None:
  """Joins the other processes of the run, and trains with them.

  Args:
    config: the whole configuration.
    workdir: the run folder; a run that it holds is resumed.
    cluster: how the processes of the run find each other.
    profile_steps: of this start, counted from 1, to be traced; None: none.

  Raises:
    UserError: the configuration, the data, the run folder or the processes do
      not fit together, or too many steps in a row were not finite.
  """
  config_lib.check(config)
  compile_cache.enable()
  times = WallTime()
  with (
    distributed.joined(cluster),
    Preemption().listening() as preemption,
    open_watchdog(config, workdir) as watchdog,
  ):
    train(
      config,
      workdir,
      jax.devices(),
      preemption,
      watchdog,
      times=times,
      profile_steps=profile_steps,
    )


def open_watchdog(config: dict[str, Any], workdir: str) -> Watchdog:
  """The watchdog of this process, which ends all processes of the run."""
  process = jax.process_index()
  return Watchdog(
    f"{workdir}/stall{f'-{process}' if process else ''}.txt",
    config["stall_seconds"],
    end=lambda message: distributed.end_run(message, status=1),
  )


def train(
  config: dict[str, Any],
  workdir: str,
  devices: Sequence[jax.Device],
  preemption: Preemption,
  watchdog: Watchdog,
  *,
  times: WallTime,
  profile_steps: range | None = None,
) -> None:
  """Opens mesh, data, model and state, and trains until the run ends.

  Args:
    config: the whole configuration.
    workdir: the run folder.
    devices: of all processes of the run.
    preemption: whether this process is asked to end.
    watchdog: receives the progress of the run.
    times: of this process, since its start.
    profile_steps: as `run`.

  Raises:
    UserError: as `run`.
  """
  mesh, data, training = setup.open_training(config, devices)
  corrupt_records = setup.open_corrupt_record_log(config, workdir, data, mesh)
  warm = setup.open_warm_start(config, workdir, data, training)

  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      stack.enter_context(claimed(workdir))
      setup.open_run_folder(config, workdir, data)
    checkpoints = stack.enter_context(
      checkpoint.open_checkpoints(workdir, keep=config["keep_checkpoints"])
    )
    state, first_step, pair_statistics = setup.start_or_resume(
      checkpoints, training, config["seed"], warm
    )
    if jax.process_index() == 0:
      print_start(config, workdir, data, mesh, training, state)
    retrieval = setup.open_retrieval_eval(config, data, mesh, training)
    batches = setup.train_batches(
      config, data, mesh, first_step, corrupt_records
    )
    # Closed: the threads of the input must not outlive the interpreter.
    with (
      contextlib.closing(batches),
      setup.open_logger(
        config,
        workdir,
        first_step,
        devices=mesh.size,
        times=times,
        peak_rate=ahead_of_time.peak_rate(
          config,
          mesh,
          vocabulary=data["tokenizer"].vocabulary,
          num_pairs=data["num_pairs"],
        ),
      ) as logger,
    ):
      profile = None
      if profile_steps and logger:
        profile = profiling.StepProfile(
          profile_steps,
          workdir,
          first_step=first_step,
          total_steps=config["total_steps"],
          logger=logger,
        )
      state = loop.loop(
        loop.Run(
          config=config,
          mesh=mesh,
          training=training,
          batches=batches,
          corrupt_records=corrupt_records,
          checkpoints=checkpoints,
          logger=logger,
          retrieval=retrieval,
          pair_statistics=pair_statistics,
          preemption=preemption,
          watchdog=watchdog,
          times=times,
          profile=profile,
        ),
        state,
      )
      checkpoint.wait(checkpoints)
      report_end(config, workdir, int(state.step), logger, preemption.reason)


@contextlib.contextmanager
def claimed(workdir: str) -> Iterator[None]:
  """Makes the run folder, and holds it against other runs."""
  run_folder.check_free(workdir)
  epath.Path(workdir).mkdir(parents=True, exist_ok=True)
  with folder_lock.held(
    workdir,
    "another run",
    lambda message: distributed.end_run(message, status=2),
  ):
    yield


def print_start(
  config: dict[str, Any],
  workdir: str,
  data: dict[str, Any],
  mesh: Any,
  training: setup.Training,
  state: Any,
) -> None:
  """Prints a few lines on what is trained, on which devices, from where."""
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  clips = [len(reader) for reader in data["readers"]]
  step, total = int(state.step), config["total_steps"]
  print(
    f"{parameters / 1e6:.2f} M parameters on {mesh.size}"
    f" {mesh.devices.flat[0].platform} device(s),"
    f" {jax.process_count()} process(es)\n"
    f"{describe_step(config, training)}\n"
    f"{sum(clips)} clips of {len(clips)} data set(s),"
    f" {total * config['batch_size'] / sum(clips):.1f} epochs\n"
    f"{'resumed at' if step else 'starting at'} step {step} of {total}",
    flush=True,
  )
  for line in describe_replicated(config, mesh, training):
    print(line, flush=True)
  for name in checkpoint.half_written(workdir):
    print(
      f"note: checkpoints/{name} was left half-written and is not used; it can"
      " be deleted",
      flush=True,
    )


def describe_replicated(
  config: dict[str, Any], mesh: Any, training: setup.Training
) -> list[str]:
  """A line on what every device holds whole because no axis is divided."""
  leaves = sharding.replicated_leaves(
    training.abstract, training.layout, config["sharding"]["rules"]
  )
  if not leaves:
    return []
  slices = sharding.num_slices(mesh)
  return [
    f"note: {len(leaves)} arrays of the state, such as {leaves[0][0]}, stand"
    f" whole on each device ({sum(n for _, n in leaves) / 2**20:.1f} MiB),"
    f" since the {mesh.shape['data']} devices of the axis data divide none of"
    f" their axes; config.sharding.slices={2 * slices} makes groups of half as"
    " many"
  ]


def describe_step(config: dict[str, Any], training: setup.Training) -> str:
  """How the similarities are computed, and the batch is encoded."""
  B, chunks = config["batch_size"], config["grad_cache_chunks"]
  tiling = training.objective.tiling
  form = "dense"
  if tiling is not None:
    form = f"in tiles of {tiling.tile} pairs, {tiling.matmul_dtype} products"
    form += f", {config['similarities']['kernel']}"
  return f"{B} x {B} similarities {form}" + (
    f"; the batch is encoded in {chunks} chunks" if chunks > 1 else ""
  )


def report_end(
  config: dict[str, Any],
  workdir: str,
  step: int,
  logger: MetricLogger | None,
  reason: str,
) -> None:
  """Reports in process 0 whether the run is finished or was preempted."""
  if logger is None:
    return
  total = config["total_steps"]
  if step == total:
    logger.event(step, "finished", **logger.speed())
    print(f"finished: step {step} in {workdir}", flush=True)
  else:
    logger.event(step, "stopped", reason=reason, **logger.speed())
    print(
      f"stopped: saved step {step} of {total} in {workdir}; the same command"
      " resumes the run",
      flush=True,
    )
