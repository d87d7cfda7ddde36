"""Trains a model; started again, it goes on where it was.

    python -m calince_jax.train --config=configs/cali_nce.py \
      --config.data.datasets=DATA --workdir=DIR [--config.key=value ...]
"""

import contextlib
import dataclasses
import os
from typing import Any

# Its start-up remarks would stand between the lines of progress.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from calince_jax import cli
from calince_jax import config as config_lib
from calince_jax.runtime import (
  checkpoint,
  compile_cache,
  distributed,
  sharding,
)
from calince_jax.runtime.preemption import StopSignal
from calince_jax.runtime.watchdog import Watchdog
from calince_jax.training import loop, setup
from calince_jax.training.metric_logger import Monitor


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; `define_flags` says what each is."""

  workdir: str
  config: ConfigDict
  distributed: str = "off"
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  start_timeout: float = 300.0
  peer_timeout: float = 60.0


def define_flags() -> None:
  """Defines the command line."""
  config_flags.DEFINE_config_file("config", None, "see configs/")
  flags.DEFINE_string("workdir", None, "where the run is kept")
  flags.DEFINE_enum(
    "distributed",
    Options.distributed,
    distributed.DISTRIBUTED,
    "how the processes of a run find each other",
  )
  flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0")
  flags.DEFINE_integer("num_processes", None, "of the whole run")
  flags.DEFINE_integer("process_id", None, "of this process")
  flags.DEFINE_float(
    "start_timeout",
    Options.start_timeout,
    "seconds for all processes to join",
    1.0,
  )
  flags.DEFINE_float(
    "peer_timeout",
    Options.peer_timeout,
    "seconds without a sign of life after which a process is lost",
    1.0,
  )
  flags.mark_flags_as_required(["config", "workdir"])


def train(options: Options) -> None:
  """Joins the other processes of the run, and trains with them."""
  config = options.config.to_dict()
  config_lib.check(config)
  compile_cache.enable()
  with (
    distributed.joined(
      options.distributed,
      options.coordinator_address,
      options.num_processes,
      options.process_id,
      start_timeout=options.start_timeout,
      peer_timeout=options.peer_timeout,
    ),
    StopSignal().listening() as stop,
    watchdog(config, options.workdir) as dog,
  ):
    train_together(config, options.workdir, stop, dog)


def watchdog(config: dict[str, Any], workdir: str) -> Watchdog:
  """That of this process."""
  me = jax.process_index()
  return Watchdog(
    f"{workdir}/stall{f'-{me}' if me else ''}.txt",
    config["stall_seconds"],
    end=lambda words: distributed.tell(words, status=1),
  )


def train_together(
  config: dict[str, Any], workdir: str, stop: StopSignal, dog: Watchdog
) -> None:
  """Mesh, data, model, state, loop."""
  mesh = sharding.make_mesh(config["sharding"]["model_parallel"])
  data = setup.open_data(config)
  training = setup.compile_training(
    config,
    mesh,
    vocabulary=data["tokenizer"].vocabulary,
    num_pairs=data["num_pairs"],
  )
  damage = setup.open_damage_log(config, workdir, data, mesh)

  if jax.process_index() == 0:
    setup.open_run_folder(config, workdir, data)
  with checkpoint.open_checkpoints(
    workdir, keep=config["keep_checkpoints"]
  ) as manager:
    state, first_step, visits = setup.start_or_resume(
      manager, training, config["seed"]
    )
    if jax.process_index() == 0:
      say_what_runs(config, workdir, data, mesh, training, state)
    retrieval = setup.open_watch(config, data, mesh, training)
    batches = setup.train_batches(config, data, mesh, first_step, damage)
    # Closed: its threads must not outlive the interpreter.
    with (
      contextlib.closing(batches),
      setup.open_monitor(config, workdir, first_step) as monitor,
    ):
      state = loop.loop(
        loop.Run(
          config=config,
          mesh=mesh,
          training=training,
          batches=batches,
          damage=damage,
          manager=manager,
          monitor=monitor,
          retrieval=retrieval,
          visits=visits,
          stop=stop,
          dog=dog,
        ),
        state,
      )
      checkpoint.wait(manager)
      report_end(config, workdir, int(state.step), monitor)


def report_end(
  config: dict[str, Any], workdir: str, step: int, monitor: Monitor | None
) -> None:
  """Says whether the run is finished or was stopped; it is saved."""
  if monitor is None:
    return
  total = config["total_steps"]
  if step == total:
    monitor.note(step, "finished")
    print(f"finished: step {step} in {workdir}", flush=True)
  else:
    monitor.note(step, "stopped", reason="SIGTERM")
    print(
      f"stopped: saved step {step} of {total} in {workdir}; the same command"
      " goes on",
      flush=True,
    )


def say_what_runs(
  config: dict[str, Any],
  workdir: str,
  data: dict[str, Any],
  mesh: Any,
  training: setup.Training,
  state: Any,
) -> None:
  """A few lines on what is about to be trained."""
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  clips = [len(reader) for reader in data["readers"]]
  step = int(state.step)
  print(
    f"{parameters / 1e6:.2f} M parameters on {mesh.size}"
    f" {jax.devices()[0].platform} device(s),"
    f" {jax.process_count()} process(es)\n"
    f"{how_a_step_goes(config, training)}\n"
    f"{sum(clips)} clips of {len(clips)} data set(s),"
    f" {config['total_steps'] * config['batch_size'] / sum(clips):.1f} epochs\n"
    f"{'resumed at' if step else 'starting at'} step {step}"
    f" of {config['total_steps']}",
    flush=True,
  )
  for name in checkpoint.half_written(workdir):
    print(
      f"note: checkpoints/{name} was left half-written and is not used; it can"
      " be deleted",
      flush=True,
    )


def how_a_step_goes(config: dict[str, Any], training: setup.Training) -> str:
  """In which form the similarities are, and the batch is encoded."""
  B, parts = config["batch_size"], config["grad_cache_chunks"]
  tiling = training.objective.tiling
  form = "dense"
  if tiling is not None:
    form = f"in tiles of {tiling.tile} pairs, {tiling.matmul_dtype} products"
    form += f", {config['similarities']['kernel']}"
  return f"{B} x {B} similarities {form}" + (
    f"; the batch is encoded in {parts} parts" if parts > 1 else ""
  )


if __name__ == "__main__":
  define_flags()
  cli.run(lambda: train(cli.options(Options)))
