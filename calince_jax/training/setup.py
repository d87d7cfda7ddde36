"""What a run is opened with: its data, its logs, the state it starts from."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from calince_jax import config as config_lib
from calince_jax.errors import UserError
from calince_jax.runtime import checkpoint, sharding
from calince_jax.training.metric_logger import Monitor


def open_data(config: dict[str, Any]) -> dict[str, Any]:
  """The readers of the mix and its tokenizer; nothing is decoded yet."""
  from calince_jax.data.input.label_noise import mismatched
  from calince_jax.data.records import reader
  from calince_jax.data.tokenizer import Tokenizer

  folders, weights = config_lib.data_mix(config)
  share, seed = (config["data"][f] for f in ("mismatch", "mismatch_seed"))
  infos = [reader.read_info(folder) for folder in folders]
  path = config_lib.common_tokenizer(folders)
  return {
    "folders": folders,
    "infos": infos,
    "weights": weights,
    "readers": [
      mismatched(
        reader.ClipReader(folder, config["data"]["split"]),
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
  from calince_jax.data.records import reader

  every, log_every = config["evaluate_every"], config["log_every"]
  if every < 0 or every % log_every:
    raise UserError(
      f"config.evaluate_every={every} must be 0 or a multiple of"
      f" config.log_every={log_every}"
    )
  if not every:
    return {}
  splits = [s for s in config["evaluate_splits"].split(",") if s]
  known = reader.read_info(folder).splits
  missing = [split for split in splits if split not in known]
  if missing or not splits:
    raise UserError(
      f"config.evaluate_splits={config['evaluate_splits']!r}: {folder} has the"
      f" splits {sorted(known)}; name some of them, or set"
      " config.evaluate_every=0"
    )
  return {split: reader.ClipReader(folder, split) for split in splits}


def open_watch(
  config: dict[str, Any],
  data: dict[str, Any],
  mesh: Any,
  training: config_lib.Training,
) -> Any:
  """The RetrievalWatch of the run, None where nothing is evaluated."""
  if not data["watched"]:
    return None
  from calince_jax.data.tokenizer import Tokenizer
  from calince_jax.training.retrieval_eval import RetrievalWatch

  return RetrievalWatch(
    training.model,
    data["watched"],
    Tokenizer(data["tokenizer"]),
    config_lib.sampling(config),
    batch_size=config["batch_size"],
    mesh=mesh,
    layout=training.layout.ema_params,
  )


def open_damage_log(
  config: dict[str, Any], workdir: str, data: dict[str, Any], mesh: Any
) -> Any:
  """The CorruptRecordLog of this process."""
  from calince_jax.data.input.corrupt_records import CorruptRecordLog

  rows = sharding.local_rows(config["batch_size"], mesh)
  return CorruptRecordLog(
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
  from calince_jax.data.input import batches as pipeline
  from calince_jax.data.tokenizer import Tokenizer

  pairs = [info.num_pairs for info in data["infos"]]
  return pipeline.train_batches(
    data["readers"],
    data["weights"],
    pair_offsets=[0, *np.cumsum(pairs)[:-1].tolist()],
    tokenizer=Tokenizer(data["tokenizer"]),
    sampling=config_lib.sampling(config),
    batch_size=config["batch_size"],
    rows=sharding.local_rows(config["batch_size"], mesh),
    text_length=config["data"]["text_length"],
    seed=config["seed"],
    first_step=first_step,
    cache=config["data"]["cache"],
    corrupt_records=damage,
  )


def start_or_resume(
  manager: Any, training: config_lib.Training, seed: int
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
