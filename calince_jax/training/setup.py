"""Sets up a training run: data, compiled step, logs, first state."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from calince_jax import config as config_lib
from calince_jax.data.records import caption_lengths
from calince_jax.data.tokenizer import Tokenizer, Vocabulary
from calince_jax.errors import UserError
from calince_jax.files import file_sha256, read_file, write_atomic
from calince_jax.losses.objective import Objective
from calince_jax.models.cali_nce import CaliNCE
from calince_jax.runtime import checkpoint, run_folder, sharding
from calince_jax.training import input_advice, memory
from calince_jax.training import step as train_step
from calince_jax.training.metric_logger import MetricLogger
from calince_jax.training.optimizer import (
  check_patterns,
  learning_rate_schedule,
  make_optimizer,
)
from calince_jax.training.wall_time import WallTime
from calince_jax.warm_start import start as warm_start


@dataclasses.dataclass(frozen=True)
class Training:
  """The compiled parts of a run; arrays come from `start` and `step`.

  Attributes:
    model: see models/cali_nce.py.
    objective: the mix of losses.
    schedule: the learning rate.
    abstract: the shapes and dtypes of the state.
    layout: the shardings of the state.
    start: seed -> state.
    begin_from: state -> state, begun from its parameters as they are now.
    step: (state, batch) -> (state, metrics).
  """

  model: CaliNCE
  objective: Objective
  schedule: optax.Schedule
  abstract: Any
  layout: Any
  start: Callable
  begin_from: Callable
  step: Callable


def compile_training(
  config: Mapping[str, Any],
  mesh: Mesh,
  *,
  vocabulary: Vocabulary,
  num_pairs: int,
) -> Training:
  """The model and its jitted step on a mesh; nothing is computed yet.

  Args:
    config: of the run, checked.
    mesh: see runtime/sharding.py.
    vocabulary: of the tokenizer.
    num_pairs: every `pair_index` is below it.

  Raises:
    UserError: two values do not fit each other.
  """
  sharding.check_batch_size(config["batch_size"], mesh)
  if config["objective"]["classification_weight"]:
    check_classes(config["model"]["classes"])
  model = config_lib.model_config(config, vocabulary).build()
  tx, schedule = open_optimizer(config)
  objective = config_lib.objective(config, config_lib.tiling(config, mesh))
  remembered = sharding.padded(num_pairs) if objective.memory else 0
  init = functools.partial(train_step.init_state, model, tx, remembered)
  abstract = jax.eval_shape(init, config["seed"])
  layout = sharding.shardings(abstract, mesh, config["sharding"]["rules"])
  check_patterns(config_lib.Optimizer(**config["optimizer"]), abstract.params)
  step = train_step.make_train_step(
    model,
    tx,
    objective,
    ema_decay=config["optimizer"]["ema_decay"],
    grad_cache_chunks=config_lib.grad_cache_chunks(config, mesh),
    mesh=mesh,
  )
  return Training(
    model=model,
    objective=objective,
    schedule=schedule,
    abstract=abstract,
    layout=layout,
    start=jax.jit(init, out_shardings=layout),
    begin_from=jax.jit(
      functools.partial(train_step.begun_from, tx),
      out_shardings=layout,
      donate_argnums=0,
    ),
    step=train_step.shard_train_step(step, layout, mesh),
  )


def check_classes(classes: Sequence[str]) -> None:
  """UserError where there are too few to tell apart."""
  if len(classes) < 2:
    raise UserError(
      "config.objective.classification_weight needs at least two names in"
      " config.model.classes; python -m calince_jax.finetune takes them from"
      " the labels of the data"
    )


def open_training(
  config: dict[str, Any], devices: Sequence[jax.Device]
) -> tuple[Mesh, dict[str, Any], Training]:
  """The mesh over `devices`, what `open_data` returns, and the compiled parts.

  Raises:
    UserError: configuration, data and devices do not fit each other.
  """
  mesh = open_mesh(config, devices)
  data = open_data(config)
  memory.check(config, mesh)
  training = compile_training(
    config,
    mesh,
    vocabulary=data["tokenizer"].vocabulary,
    num_pairs=data["num_pairs"],
  )
  return mesh, data, training


def open_mesh(config: Mapping[str, Any], devices: Sequence[jax.Device]) -> Mesh:
  """The mesh of `config.sharding` over `devices`."""
  settings = config["sharding"]
  return sharding.make_mesh(
    devices, settings["model_parallel"], settings["slices"]
  )


def open_optimizer(
  config: Mapping[str, Any],
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer and its learning rate, from `config.optimizer`."""
  settings = config_lib.Optimizer(**config["optimizer"])
  try:
    schedule = learning_rate_schedule(settings, config["total_steps"])
  except ValueError as error:
    raise UserError(f"config.optimizer: {error}") from error
  return make_optimizer(settings, schedule), schedule


def open_run_folder(
  config: dict[str, Any], workdir: str, data: dict[str, Any]
) -> None:
  """Starts or resumes the run's folder; see run_folder.begin."""
  earlier, table = None, config["data"]["confidences"]
  if run_folder.exists(workdir):
    earlier = config_lib.read_run(workdir)
  run_folder.begin(
    workdir,
    config,
    data["tokenizer_path"],
    data["folders"],
    data["infos"],
    confidences=file_sha256(table) if table else None,
    earlier=earlier,
    may_change=config_lib.keys_that_may_change(),
  )
  for folder in data["folders"]:
    print_cut_captions(config, folder)


def print_cut_captions(config: dict[str, Any], folder: str) -> None:
  """Says how many captions of a data set are longer than text_length."""
  length = config["data"]["text_length"]
  cut = caption_lengths.describe_cut(folder, config["data"]["split"], length)
  if cut:
    print(
      f"note: {cut}, and are cut (config.data.text_length={length})", flush=True
    )


def open_warm_start(
  config: dict[str, Any], workdir: str, data: dict[str, Any], training: Training
) -> Callable[[Any], Any] | None:
  """From fresh parameters to warm ones; None where config.init names nothing.

  The folders are read at once, before a run folder is made of a configuration
  that does not fit them; not where a run is to be resumed. When the function is
  called, process 0 writes the report into the run folder.

  Raises:
    UserError: see warm_start.read_all.
  """
  folders = config["init"]
  kinds = (*warm_start.KINDS, "model")
  named = [folders[kind] for kind in kinds if folders.get(kind)]
  if not named:
    return None
  leaves = jax.tree_util.tree_leaves_with_path(training.abstract.params)
  read = functools.partial(
    warm_start.read_all,
    {sharding.path_name(path): leaf.shape for path, leaf in leaves},
    training.model.config,
    folders,
    read_file(data["tokenizer_path"]),
  )
  known = None if checkpoint.are_there(workdir) else read()

  def warm(params):
    values, rows = known or read()
    if jax.process_index() == 0:
      path = epath.Path(workdir) / run_folder.WARM_START
      write_atomic(path, warm_start.as_csv(rows))
      print(
        f"warm start from {', '.join(named)}: {warm_start.summary(rows)}; each"
        f" is listed in {path}",
        flush=True,
      )
    return warm_start.put(params, values)

  return warm


def open_data(config: dict[str, Any]) -> dict[str, Any]:
  """The readers of the mix and its tokenizer; nothing is decoded yet."""
  from calince_jax.data.input import given_confidences
  from calince_jax.data.input.label_noise import mismatched
  from calince_jax.data.records import reader

  check_confidences(config)
  folders, weights = config_lib.data_mix(config)
  noise = ("mismatch", "mismatch_seed", "mismatch_kind")
  share, seed, kind = (config["data"][name] for name in noise)
  infos = [reader.read_info(folder) for folder in folders]
  classes = config["model"]["classes"]
  labels = {label for info in infos for label in info.labels}
  if config["objective"]["classification_weight"] and not labels & {*classes}:
    raise UserError(
      f"config.model.classes={list(classes)[:5]} are no labels of"
      f" {', '.join(folders)}, which are {sorted(labels)[:5]}"
    )
  path = config_lib.common_tokenizer(folders)
  readers = [
    mismatched(
      reader.ClipReader(folder, config["data"]["split"]), share, seed + d, kind
    )
    for d, folder in enumerate(folders)
  ]
  pairs = [info.num_pairs for info in infos]
  offsets = [0, *np.cumsum(pairs)[:-1].tolist()]
  table = config["data"]["confidences"]
  return {
    "folders": folders,
    "infos": infos,
    "weights": weights,
    "readers": readers,
    "pair_offsets": offsets,
    "confidences": given_confidences.of_pairs(
      table, readers, offsets, sum(pairs)
    )
    if table
    else None,
    "evaluated": evaluated_readers(config, folders[0]),
    "tokenizer_path": path,
    "tokenizer": Tokenizer(path),
    "num_pairs": sum(pairs),
  }


def check_confidences(config: Mapping[str, Any]) -> None:
  """UserError where a table of confidences is missing, or of no use."""
  given = config["objective"]["confidence"] == "given"
  if given and not config["data"]["confidences"]:
    raise UserError(
      "config.objective.confidence='given' needs a table of P(fits): run python"
      " -m calince_jax.clean, and give --config.data.confidences="
      "OUT/pairs.parquet"
    )
  if not given and config["data"]["confidences"]:
    raise UserError(
      f"config.data.confidences={config['data']['confidences']} goes with"
      " config.objective.confidence='given', which is"
      f" {config['objective']['confidence']!r}"
    )


def evaluated_readers(config: dict[str, Any], folder: str) -> dict[str, Any]:
  """The splits that are evaluated during training, {} where none is.

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


def open_retrieval_eval(
  config: dict[str, Any],
  data: dict[str, Any],
  mesh: Any,
  training: Training,
) -> Any:
  """The RetrievalEval of the run, None where nothing is evaluated."""
  if not data["evaluated"]:
    return None
  from calince_jax.training.retrieval_eval import RetrievalEval

  return RetrievalEval(
    training.model,
    data["evaluated"],
    data["tokenizer"],
    config_lib.sampling(config),
    batch_size=config["batch_size"],
    mesh=mesh,
    layout=training.layout.ema_params,
  )


def open_corrupt_record_log(
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
  corrupt_records: Any = None,
) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows of the batches from `first_step` on."""
  from calince_jax.data.input import batches as pipeline

  return pipeline.train_batches(
    data["readers"],
    data["weights"],
    pair_offsets=data["pair_offsets"],
    tokenizer=data["tokenizer"],
    sampling=config_lib.sampling(config),
    batch_size=config["batch_size"],
    rows=sharding.local_rows(config["batch_size"], mesh),
    text_length=config["data"]["text_length"],
    seed=config["seed"],
    first_step=first_step,
    cache=config["data"]["cache"],
    corrupt_records=corrupt_records,
    classes=config["model"]["classes"],
    confidences=data["confidences"],
  )


def start_or_resume(
  manager: Any,
  training: Training,
  seed: int,
  warm: Callable[[Any], Any] | None = None,
) -> tuple[Any, int, dict[str, np.ndarray]]:
  """A fresh state, or that of the last checkpoint.

  Args:
    manager: of the checkpoints.
    training: see `compile_training`.
    seed: of a fresh state.
    warm: from fresh parameters to those that training starts from; not called
      where a run is resumed.

  Returns:
    The state, its step, and the pair statistics saved with it.
  """
  steps = checkpoint.all_steps(manager)
  if not steps:
    state = training.start(seed)
    if warm is not None:
      state = training.begin_from(state.replace(params=warm(state.params)))
    return state, 0, {}
  step = steps[-1]
  abstract = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    training.abstract,
    training.layout,
  )
  state = checkpoint.restore(manager, step, abstract)
  if int(state.step) != step:
    raise UserError(
      f"checkpoint {step} in {manager.directory} holds step {int(state.step)}:"
      " it was renamed or copied; move it out of the folder"
    )
  return state, step, checkpoint.restore_pair_statistics(manager, step)


@contextlib.contextmanager
def open_logger(
  config: dict[str, Any],
  workdir: str,
  first_step: int,
  *,
  devices: int,
  times: WallTime,
  peak_rate: float | None,
) -> Iterator[MetricLogger | None]:
  """The MetricLogger of process 0, and None in the others."""
  if jax.process_index():
    yield None
    return
  from clu import metric_writers

  logger = MetricLogger(
    workdir,
    first_step=first_step,
    total_steps=config["total_steps"],
    batch_size=config["batch_size"],
    devices=devices,
    times=times,
    peak_rate=peak_rate,
    advice=input_advice.advice(config["data"]),
    writer=metric_writers.SummaryWriter(f"{workdir}/tensorboard"),
  )
  logger.event(
    first_step,
    "resumed" if first_step else "started",
    processes=jax.process_count(),
    devices=jax.device_count(),
  )
  try:
    yield logger
  finally:
    logger.close()
