"""Trains a model; started again, it goes on where it was.

    python -m calince_jax.train --config=configs/cali_nce.py \
      --config.data.datasets=DATA --workdir=DIR [--config.key=value ...]
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

# Its start-up remarks would stand between the lines of progress.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from calince_jax import (
  build,
  checkpoint,
  cluster,
  command_line,
  compile_cache,
  run_folder,
  sharding,
  train_loop,
)
from calince_jax.errors import UserError
from calince_jax.monitor import Monitor
from calince_jax.stop_signal import StopSignal
from calince_jax.watchdog import Watchdog


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
    cluster.DISTRIBUTED,
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
  build.check_numbers(config)
  compile_cache.enable()
  with (
    cluster.joined(
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
    end=lambda words: cluster.tell(words, status=1),
  )


def train_together(
  config: dict[str, Any], workdir: str, stop: StopSignal, dog: Watchdog
) -> None:
  """Mesh, data, model, state, loop."""
  mesh = sharding.make_mesh(config["sharding"]["model_parallel"])
  data = open_data(config)
  training = build.training(
    config, mesh, vocab_size=data["vocab_size"], num_pairs=data["num_pairs"]
  )
  damage = open_damage_log(config, workdir, data, mesh)

  if jax.process_index() == 0:
    run_folder.begin(
      workdir, config, data["tokenizer"], data["folders"], data["infos"]
    )
  with checkpoint.open_checkpoints(
    workdir, keep=config["keep_checkpoints"]
  ) as manager:
    state, first_step, visits = start_or_resume(
      manager, training, config["seed"]
    )
    if jax.process_index() == 0:
      say_what_runs(config, workdir, data, mesh, training, state)
    retrieval = open_watch(config, data, mesh, training)
    batches = train_batches(config, data, mesh, first_step, damage)
    # Closed: its threads must not outlive the interpreter.
    with (
      contextlib.closing(batches),
      open_monitor(config, workdir, first_step) as monitor,
    ):
      state = train_loop.loop(
        train_loop.Run(
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


def open_data(config: dict[str, Any]) -> dict[str, Any]:
  """The readers of the mix and its tokenizer; nothing is decoded yet."""
  from calince_jax.data import clip_dataset
  from calince_jax.data.mismatch import mismatched
  from calince_jax.data.tokenizer import Tokenizer

  folders, weights = build.data_mix(config)
  share, seed = (config["data"][f] for f in ("mismatch", "mismatch_seed"))
  infos = [clip_dataset.read_info(folder) for folder in folders]
  path = build.common_tokenizer(folders)
  return {
    "folders": folders,
    "infos": infos,
    "weights": weights,
    "readers": [
      mismatched(
        clip_dataset.ClipReader(folder, config["data"]["split"]),
        share,
        seed + d,
      )
      for d, folder in enumerate(folders)
    ],
    "watched": watched_readers(config, folders[0]),
    "tokenizer": path,
    "vocab_size": Tokenizer(path).vocab_size,
    "num_pairs": sum(info.num_pairs for info in infos),
  }


def watched_readers(config: dict[str, Any], folder: str) -> dict[str, Any]:
  """The splits that are evaluated during training, {} if none is.

  Raises:
    UserError: `evaluate_every` does not fit, or `folder` lacks a split.
  """
  from calince_jax.data import clip_dataset

  every, log_every = config["evaluate_every"], config["log_every"]
  if every < 0 or every % log_every:
    raise UserError(
      f"config.evaluate_every={every} must be 0 or a multiple of"
      f" config.log_every={log_every}"
    )
  if not every:
    return {}
  splits = [s for s in config["evaluate_splits"].split(",") if s]
  known = clip_dataset.read_info(folder).splits
  missing = [split for split in splits if split not in known]
  if missing or not splits:
    raise UserError(
      f"config.evaluate_splits={config['evaluate_splits']!r}: {folder} has the"
      f" splits {sorted(known)}; name some of them, or set"
      " config.evaluate_every=0"
    )
  return {split: clip_dataset.ClipReader(folder, split) for split in splits}


def open_watch(
  config: dict[str, Any],
  data: dict[str, Any],
  mesh: Any,
  training: build.Training,
) -> Any:
  """The RetrievalWatch of the run, None where nothing is evaluated."""
  if not data["watched"]:
    return None
  from calince_jax.data.tokenizer import Tokenizer
  from calince_jax.watch import RetrievalWatch

  return RetrievalWatch(
    training.model,
    data["watched"],
    Tokenizer(data["tokenizer"]),
    build.sampling(config),
    batch_size=config["batch_size"],
    mesh=mesh,
    layout=training.layout.ema_params,
  )


def open_damage_log(
  config: dict[str, Any], workdir: str, data: dict[str, Any], mesh: Any
) -> Any:
  """The DamageLog of this process."""
  from calince_jax.data.damage import DamageLog

  rows = sharding.local_rows(config["batch_size"], mesh)
  return DamageLog(
    workdir,
    data["readers"],
    max_bad_fraction=config["data"]["max_bad_fraction"],
    share=len(rows) / config["batch_size"],
    process=jax.process_index(),
  )


def train_batches(
  config: dict[str, Any],
  data: dict[str, Any],
  mesh: Any,
  first_step: int,
  damage: Any = None,
) -> Iterator[dict[str, np.ndarray]]:
  """This host's share of the batches from `first_step` on."""
  from calince_jax.data import pipeline
  from calince_jax.data.tokenizer import Tokenizer

  pairs = [info.num_pairs for info in data["infos"]]
  return pipeline.train_batches(
    data["readers"],
    data["weights"],
    pair_offsets=[0, *np.cumsum(pairs)[:-1].tolist()],
    tokenizer=Tokenizer(data["tokenizer"]),
    sampling=build.sampling(config),
    batch_size=config["batch_size"],
    rows=sharding.local_rows(config["batch_size"], mesh),
    text_length=config["data"]["text_length"],
    seed=config["seed"],
    first_step=first_step,
    cache=config["data"]["cache"],
    damage=damage,
  )


def start_or_resume(
  manager: Any, training: build.Training, seed: int
) -> tuple[Any, int, dict[str, np.ndarray]]:
  """A fresh state, or that of the last checkpoint; its step; its visits."""
  step = manager.latest_step()
  if step is None:
    return training.start(seed), 0, {}
  abstract = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    training.abstract,
    training.layout,
  )
  state = checkpoint.restore(manager, step, abstract)
  return state, step, checkpoint.restore_visits(manager, step)


@contextlib.contextmanager
def open_monitor(
  config: dict[str, Any], workdir: str, first_step: int
) -> Iterator[Monitor | None]:
  """The monitor of process 0, and None in the others."""
  if jax.process_index():
    yield None
    return
  from clu import metric_writers

  monitor = Monitor(
    workdir,
    first_step=first_step,
    total_steps=config["total_steps"],
    batch_size=config["batch_size"],
    writer=metric_writers.SummaryWriter(f"{workdir}/tensorboard"),
  )
  monitor.note(
    first_step,
    "resumed" if first_step else "started",
    processes=jax.process_count(),
    devices=jax.device_count(),
  )
  try:
    yield monitor
  finally:
    monitor.close()


def say_what_runs(
  config: dict[str, Any],
  workdir: str,
  data: dict[str, Any],
  mesh: Any,
  training: build.Training,
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


def how_a_step_goes(config: dict[str, Any], training: build.Training) -> str:
  """In which form the similarities are, and the batch is encoded."""
  B, parts = config["batch_size"], config["micro_batches"]
  tiling = training.objective.tiling
  form = "dense"
  if tiling is not None:
    form = f"in tiles of {tiling.tile} pairs, {tiling.products} products"
    form += f", {config['similarities']['kernel']}"
  return f"{B} x {B} similarities {form}" + (
    f"; the batch is encoded in {parts} parts" if parts > 1 else ""
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(lambda: train(command_line.options(Options)))
