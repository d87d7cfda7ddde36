"""Trains a model; started again, it goes on where it was.

    python -m calince_jax.train --config=configs/cali_nce.py \
      --config.data.datasets=DATA --workdir=DIR [--config.key=value ...]
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Its start-up remarks would stand between the lines of progress.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from calince_jax import (
  build,
  checkpoint,
  command_line,
  compile_cache,
  sharding,
  train_step,
)
from calince_jax.errors import UserError
from calince_jax.monitor import Monitor


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; `define_flags` says what each is."""

  workdir: str
  config: ConfigDict
  distributed: str = "off"
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None


def define_flags() -> None:
  """Defines the command line."""
  config_flags.DEFINE_config_file("config", None, "see configs/")
  flags.DEFINE_string("workdir", None, "where the run is kept")
  flags.DEFINE_enum(
    "distributed",
    Options.distributed,
    sharding.DISTRIBUTED,
    "how the processes of a run find each other",
  )
  flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0")
  flags.DEFINE_integer("num_processes", None, "of the whole run")
  flags.DEFINE_integer("process_id", None, "of this process")
  flags.mark_flags_as_required(["config", "workdir"])


def train(options: Options) -> None:
  """Mesh, data, model, state, loop."""
  compile_cache.enable()
  config, workdir = options.config.to_dict(), options.workdir
  build.check_numbers(config)
  sharding.start_cluster(
    options.distributed,
    options.coordinator_address,
    options.num_processes,
    options.process_id,
  )
  mesh = sharding.make_mesh(config["sharding"]["model_parallel"])
  sharding.check_batch_size(config["batch_size"], mesh)

  data = open_data(config)
  model = build.model_config(config, data["vocab_size"]).build()
  tx, schedule = build.optimizer(config)
  init = functools.partial(train_step.init_state, model, tx, config["seed"])
  layout = sharding.shardings(
    jax.eval_shape(init), mesh, config["sharding"]["rules"]
  )
  step = train_step.make_train_step(
    model,
    tx,
    build.objective(config),
    ema_decay=config["optimizer"]["ema_decay"],
    seed=config["seed"],
  )
  step_function = train_step.shard_train_step(step, layout, mesh)

  if jax.process_index() == 0:
    checkpoint.write_config(workdir, config)
    keep_tokenizer(workdir, data["tokenizer"])
  with checkpoint.open_checkpoints(
    workdir, keep=config["keep_checkpoints"]
  ) as manager:
    state, first_step = start_or_resume(manager, init, layout)
    if jax.process_index() == 0:
      say_what_runs(config, data, mesh, state)
    batches = train_batches(config, data, mesh, first_step)
    with open_monitor(config, workdir, first_step) as monitor:
      state = loop(
        config, mesh, step_function, schedule, state, batches, manager, monitor
      )
    checkpoint.save(manager, int(state.step), state, config)
  if jax.process_index() == 0:
    print(f"finished: step {int(state.step)} in {workdir}", flush=True)


def open_data(config: dict[str, Any]) -> dict[str, Any]:
  """The readers of the mix and its tokenizer; nothing is decoded yet."""
  from calince_jax.data import clip_dataset
  from calince_jax.data.tokenizer import Tokenizer

  folders, weights = build.data_mix(config)
  infos = [clip_dataset.read_info(folder) for folder in folders]
  path = build.common_tokenizer(folders)
  return {
    "infos": infos,
    "weights": weights,
    "readers": [
      clip_dataset.ClipReader(folder, config["data"]["split"])
      for folder in folders
    ],
    "tokenizer": path,
    "vocab_size": Tokenizer(path).vocab_size,
  }


def train_batches(
  config: dict[str, Any], data: dict[str, Any], mesh: Any, first_step: int
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
  )


def keep_tokenizer(workdir: str, path: Path) -> None:
  """Copies the data's tokenizer to the run, or checks that it is the run's."""
  kept = epath.Path(workdir) / "tokenizer.model"
  if not kept.exists():
    kept.write_bytes(path.read_bytes())
  elif kept.read_bytes() != path.read_bytes():
    raise UserError(
      f"{path} is not the tokenizer that {workdir} began with: its data was"
      " prepared anew; choose another --workdir"
    )


def start_or_resume(manager: Any, init: Any, layout: Any) -> tuple[Any, int]:
  """A fresh state, or that of the last checkpoint; and its step."""
  step = manager.latest_step()
  if step is None:
    return jax.jit(init, out_shardings=layout)(), 0
  abstract = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    jax.eval_shape(init),
    layout,
  )
  return checkpoint.restore(manager, step, abstract), step


def loop(
  config: dict[str, Any],
  mesh: Any,
  step_function: Any,
  schedule: Any,
  state: Any,
  batches: Iterator[dict[str, np.ndarray]],
  manager: Any,
  monitor: Monitor | None,
) -> Any:
  """Trains until `total_steps`; returns the last state.

  Step n's metrics are read after step n + 1 has been dispatched, so that the
  devices do not wait for the log.
  """
  total, first_step = config["total_steps"], int(state.step)
  previous = None
  for step in range(first_step + 1, total + 1):
    with monitor.waiting() if monitor else contextlib.nullcontext():
      batch = sharding.to_global(next(batches), mesh)
    state, metrics = step_function(state, batch)
    if step == first_step + 1 and monitor:
      jax.block_until_ready(metrics)
      monitor.first_step_done()
    for done, seen in ([previous] if previous else []) + (
      [(step, metrics)] if step == total else []
    ):
      check_finite(config, manager, state, seen)
      if monitor and (done % config["log_every"] == 0 or done == total):
        rate = schedule(done - 1)
        monitor.log(done, jax.device_get(seen) | {"learning_rate": rate})
    previous = (step, metrics)
    if step % config["checkpoint_every"] == 0:
      checkpoint.save(manager, step, state, config)
  return state


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
  try:
    yield monitor
  finally:
    monitor.close()


def say_what_runs(
  config: dict[str, Any], data: dict[str, Any], mesh: Any, state: Any
) -> None:
  """A few lines on what is about to be trained."""
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  clips = [len(reader) for reader in data["readers"]]
  step = int(state.step)
  print(
    f"{parameters / 1e6:.2f} M parameters on {mesh.size}"
    f" {jax.devices()[0].platform} device(s),"
    f" {jax.process_count()} process(es)\n"
    f"{sum(clips)} clips of {len(clips)} data set(s),"
    f" {config['total_steps'] * config['batch_size'] / sum(clips):.1f} epochs\n"
    f"{'resumed at' if step else 'starting at'} step {step}"
    f" of {config['total_steps']}",
    flush=True,
  )


if __name__ == "__main__":
  define_flags()
  command_line.run(lambda: train(command_line.options(Options)))
