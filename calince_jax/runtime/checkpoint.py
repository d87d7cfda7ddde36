"""Saving and restoring a run with Orbax.

WORKDIR/checkpoints/STEP holds the whole TrainState (state) and the
configuration that made it (config), which WORKDIR/config.json repeats, so that
a run can be resumed, evaluated or exported from its folder alone. Before a
checkpoint gets its name, the checksums of its files are written into it
(checksums.py), and they are compared before it is restored.
"""

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from calince_jax.errors import UserError
from calince_jax.files import in_bucket, read_json
from calince_jax.runtime import checksums, distributed, run_folder

TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of what is being written
# Counters of TrainState that a checkpoint of an older format lacks: they are 0.
LATER_COUNTERS = ("skipped_steps",)  # since format 2
# What a checkpoint says of itself since it has checksums.
CHECKED = {"checksums": True}
# The item of pair statistics, and its name in checkpoints written before.
PAIR_STATISTICS, OLD_PAIR_STATISTICS = "pair_statistics", "visits"


def checkpoints_folder(workdir: str) -> epath.Path:
  """WORKDIR/checkpoints, absolute, as Orbax requires."""
  path = epath.Path(workdir)
  # The name of a bucket is absolute already; resolve() would make it a folder.
  return (path if "://" in workdir else path.resolve()) / "checkpoints"


@contextlib.contextmanager
def open_checkpoints(
  workdir: str, *, keep: int = 1, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
  """The checkpoints of a run; saves are asynchronous, and finished at exit.

  Args:
    workdir: run folder; a local path or one of Google Cloud Storage.
    keep: the number of latest checkpoints that are kept.
    read_only: for evaluation and export.

  Raises:
    UserError: at exit, a checkpoint that was being saved cannot be.
  """
  _silence_orbax()
  folder = checkpoints_folder(workdir)
  if folder.exists() and not folder.is_dir():
    raise UserError(f"{folder} is not a folder; move it away")
  finished = functools.partial(_write_checksums, folder)
  try:
    manager = ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else keep,
        create=not read_only,
        read_only=read_only,
        async_options=ocp.AsyncOptions(post_finalization_callback=finished),
      ),
    )
  except Exception as error:
    if distributed.is_lost_connection(error):
      raise
    raise UserError(
      f"the checkpoints in {folder} cannot be opened ({_first_line(error)});"
      " repair the folder"
    ) from error
  try:
    yield manager
  except BaseException:
    with contextlib.suppress(Exception):  # the first error is the one to report
      manager.close()
    raise
  with _saving(manager):
    manager.close()


@functools.cache
def _silence_orbax() -> None:
  """Silences what Orbax prints and logs of errors that it raises as well.

  It would hide the one line that says what to do.
  """
  thread_hook, unraisable = threading.excepthook, sys.unraisablehook

  def quiet_thread(arguments):
    if not type(arguments.thread).__module__.startswith("orbax"):
      thread_hook(arguments)

  def quiet_unraisable(arguments):
    if str(arguments.exc_value) != "Event loop is closed":
      unraisable(arguments)

  threading.excepthook = quiet_thread
  sys.unraisablehook = quiet_unraisable
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  logging.getLogger("absl").addFilter(
    lambda record: "/orbax/" not in record.pathname
  )


def _write_checksums(folder: epath.Path) -> None:
  """Of what has been written whole, and has not got its name yet."""
  for path in folder.iterdir():
    if not path.is_dir() or checksums.exist(path):
      continue
    if TEMPORARY in path.name or (
      in_bucket(path) and not (path / "commit_success.txt").exists()
    ):
      checksums.write(path)


def are_there(workdir: str) -> bool:
  """Whether a folder has the name of a finished checkpoint."""
  folder = checkpoints_folder(workdir)
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  return any(name.isdecimal() for name in names)


def half_written(workdir: str) -> list[str]:
  """The names of checkpoints that a killed run did not finish writing."""
  folder = checkpoints_folder(workdir)
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  return sorted(name for name in names if TEMPORARY in name)


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: Any,
  config: dict[str, Any],
  pair_statistics: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Starts to save `state` as `step`, unless `step` is the latest already.

  Args:
    manager: from `open_checkpoints`.
    step: the step of the state.
    state: a tree of arrays.
    config: the run's configuration, saved as an item of its own.
    pair_statistics: pairs collected and not yet summed up, likewise; nothing is
      saved where there are none.

  Raises:
    UserError: it cannot be saved, or the checkpoint before it could not be.
  """
  if step == manager.latest_step():
    return
  items = {
    "state": ocp.args.StandardSave(state),
    "config": ocp.args.JsonSave(run_folder.document(config) | CHECKED),
  }
  if pair_statistics:
    items[PAIR_STATISTICS] = ocp.args.StandardSave(dict(pair_statistics))
  with _saving(manager):
    manager.save(step, args=ocp.args.Composite(**items), force=True)


def wait(manager: ocp.CheckpointManager) -> None:
  """Waits until `save` has finished; UserError where it cannot."""
  with _saving(manager):
    manager.wait_until_finished()


@contextlib.contextmanager
def _saving(manager):
  """Explains an error of the disk, which may belong to an earlier save."""
  try:
    yield
  except Exception as error:
    if distributed.is_lost_connection(error):  # not an error of the disk
      raise
    raise UserError(
      f"no checkpoint can be saved in {manager.directory}"
      f" ({_first_line(error)}); make room, or repair the folder"
      f" ({_whole_steps(manager.directory)})"
    ) from error


def all_steps(manager: ocp.CheckpointManager) -> list[int]:
  """The steps of the checkpoints that were finished, rising."""
  try:
    return sorted(manager.all_steps())
  except Exception as error:
    raise UserError(
      f"the checkpoints in {manager.directory} cannot be listed"
      f" ({_first_line(error)}); repair the folder"
    ) from error


def _whole_steps(folder, without=None):
  """Those that are as they were saved, for a message."""
  try:
    steps = sorted(
      int(path.name)
      for path in folder.iterdir()
      if path.name.isdecimal()
      and path.name != str(without)
      and _looks_whole(path)
    )
  except OSError:
    steps = []
  return f"whole there: {', '.join(map(str, steps)) or 'none'}"


def _looks_whole(path):
  named = (path / "config").is_dir() and (path / "state").is_dir()
  return named and not checksums.damage(path)


def _check_whole(folder, step):
  """UserError where a checkpoint is not as it was saved.

  Each process of several reads its share of the files.
  """
  path = folder / str(step)
  shares = jax.process_index(), jax.process_count()
  found = checksums.damage(path, *shares)
  found += [
    f"{name} is missing"
    for name in ("config", "state")
    if not (path / name).is_dir()
  ]
  if found:
    raise UserError(_damaged(folder, step, checksums.describe(found)))
  if not checksums.exist(path):
    document = read_json(path / "config" / "metadata")
    if CHECKED.items() <= document.items():
      raise UserError(_damaged(folder, step, f"{checksums.FILE} is missing"))
    print(
      f"note: checkpoint {step} has no checksums (an older version wrote it);"
      " it is not checked",
      flush=True,
    )


def _damaged(folder, step, why):
  earlier = _whole_steps(folder, step)
  return (
    f"checkpoint {step} in {folder} is damaged, or does not fit the configured"
    f" model: {why}; to go on from another one ({earlier}), move {step} out of"
    " the folder"
  )


def _first_line(error):
  return str(error).strip().split("\n")[0][:300] or type(error).__name__


def restore(manager: ocp.CheckpointManager, step: int, abstract: Any) -> Any:
  """The state saved as `step`.

  Args:
    manager: from `open_checkpoints`.
    step: one of `manager.all_steps()`.
    abstract: a dataclass or dict of ShapeDtypeStructs with shardings: the
      expected state, and how to place it. It may be of another topology than
      the one that saved the state. LATER_COUNTERS are 0 where the checkpoint is
      of an older format.

  Raises:
    UserError: the checkpoint is of another model, damaged or of a newer format.
  """
  _check_whole(manager.directory, step)
  with _restoring(manager.directory, step):
    config = ocp.args.Composite(config=ocp.args.JsonRestore())
    document = manager.restore(step, args=config).config
    version, _ = run_folder.check_format(document, f"checkpoint {step}")
    expected, missing = _fields(abstract), {}
    if version < 2:
      missing = {k: expected.pop(k) for k in LATER_COUNTERS if k in expected}
    memory = _saved_pair_memory(manager, step)
    if memory:
      place = expected["step"].sharding
      expected["calibration"] = expected["calibration"] | {
        "memory": {
          name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
          for name, leaf in memory.items()
        }
      }
    items = ocp.args.Composite(state=ocp.args.StandardRestore(expected))
    restored = manager.restore(step, args=items).state
    if memory:
      restored["calibration"] |= _fitted_pair_memory(
        restored["calibration"].pop("memory"), _fields(abstract)["calibration"]
      )
    zeros = {
      name: jax.jit(
        functools.partial(jnp.zeros, leaf.shape, leaf.dtype),
        out_shardings=leaf.sharding,
      )()
      for name, leaf in missing.items()
    }
    return type(abstract)(**restored, **zeros)


def _saved_pair_memory(manager, step):
  """{name: shape and dtype} of the confidences of pairs in a checkpoint.

  Once every run saved them, whether it averaged them or not, and as many as
  there were pairs; {} where there are none.
  """
  with ocp.PyTreeCheckpointer() as checkpointer:
    saved = checkpointer.metadata(manager.directory / str(step) / "state")
  if saved.item_metadata is None:
    raise ValueError("its list of arrays cannot be read")
  return saved.item_metadata.tree.get("calibration", {}).get("memory", {})


def _fitted_pair_memory(saved, expected):
  """{"memory": saved}, filled up with zeros; {} where none is expected."""
  if "memory" not in expected:
    return {}

  def fit(leaf, wanted):
    return jax.jit(
      lambda x: jnp.pad(x, (0, wanted.size - x.size)),
      out_shardings=wanted.sharding,
    )(leaf)

  return {"memory": jax.tree.map(fit, dict(saved), expected["memory"])}


@contextlib.contextmanager
def _restoring(folder, step):
  """Explains whatever Orbax raises of a checkpoint."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    if distributed.is_lost_connection(error):
      raise
    why = " ".join(str(error).split())[:400] or type(error).__name__
    raise UserError(_damaged(folder, step, why)) from error


def _fields(tree):
  return dict(tree if isinstance(tree, Mapping) else vars(tree))


def restore_pair_statistics(
  manager: ocp.CheckpointManager, step: int
) -> dict[str, np.ndarray]:
  """The pair statistics saved with `step`; {} if there were none."""
  for name in (PAIR_STATISTICS, OLD_PAIR_STATISTICS):
    if (manager.directory / str(step) / name).exists():
      items = ocp.args.Composite(**{name: ocp.args.StandardRestore()})
      with _restoring(manager.directory, step):
        return manager.restore(step, args=items)[name]
  return {}


def restore_parts(
  workdir: str, step: int | None, names: Sequence[str]
) -> tuple[int, dict[str, Any]]:
  """Parts of a saved state as host arrays, and their step.

  Args:
    workdir: run folder.
    step: of the checkpoint; None for the latest.
    names: fields of TrainState, such as `ema_params`.

  Raises:
    UserError: there is no such checkpoint.
  """
  directory = checkpoints_folder(workdir)
  if not directory.is_dir():
    raise UserError(f"{workdir} has no checkpoints; has the run been trained?")
  with open_checkpoints(workdir, read_only=True) as manager:
    steps = all_steps(manager)
  if not steps:
    raise UserError(f"{directory} holds no finished checkpoint")
  step = max(steps) if step is None else step
  if step not in steps:
    raise UserError(f"{directory} holds the steps {sorted(steps)}, not {step}")
  _check_whole(directory, step)
  item = directory / str(step) / "state"
  host = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with _restoring(directory, step), ocp.PyTreeCheckpointer() as checkpointer:
    saved = checkpointer.metadata(item).item_metadata.tree
    lacking = [name for name in names if name not in saved]
    if lacking:
      raise ValueError(f"its state lacks {lacking}")
    target = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host),
      {name: saved[name] for name in names},
    )
    restored = checkpointer.restore(
      item,
      args=ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
      ),
    )
    return step, jax.device_get(restored)
