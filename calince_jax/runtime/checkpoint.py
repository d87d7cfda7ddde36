"""Saving and restoring a run with Orbax.

WORKDIR/checkpoints/STEP holds the whole TrainState (state) and the
configuration that made it (config), which WORKDIR/config.json repeats, so that
a run can be continued, evaluated or exported from its folder alone.
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
from calince_jax.runtime import distributed, run_folder

# Counters of TrainState that a checkpoint of an older format lacks: they are 0.
LATER_COUNTERS = ("skipped_steps",)  # since format 2


def checkpoints_folder(workdir: str) -> epath.Path:
  """WORKDIR/checkpoints, absolute, as Orbax wants it."""
  path = epath.Path(workdir)
  # A bucket's name is absolute as it is, and must not be taken for a folder.
  return (path if "://" in workdir else path.resolve()) / "checkpoints"


@contextlib.contextmanager
def open_checkpoints(
  workdir: str, *, keep: int = 1, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
  """The checkpoints of a run; saves are asynchronous, and done at the end.

  Args:
    workdir: of the run; a local path or one of Google Cloud Storage.
    keep: the number of latest checkpoints that are kept.
    read_only: for evaluation and export.

  Raises:
    UserError: at the end, what was still to be saved cannot be.
  """
  _without_echo()
  manager = ocp.CheckpointManager(
    checkpoints_folder(workdir),
    options=ocp.CheckpointManagerOptions(
      max_to_keep=None if read_only else keep,
      create=not read_only,
      read_only=read_only,
    ),
  )
  try:
    yield manager
  except BaseException:
    with contextlib.suppress(Exception):  # the first fault is the one to tell
      manager.close()
    raise
  with _saving(manager):
    manager.close()


@functools.cache
def _without_echo() -> None:
  """Keeps quiet what Orbax prints and logs of a fault that it raises as well.

  It would stand between the person and the one line that says what to do.
  """
  of_thread, unraisable = threading.excepthook, sys.unraisablehook

  def quiet_thread(arguments):
    if not type(arguments.thread).__module__.startswith("orbax"):
      of_thread(arguments)

  def quiet_unraisable(arguments):
    if str(arguments.exc_value) != "Event loop is closed":
      unraisable(arguments)

  threading.excepthook = quiet_thread
  sys.unraisablehook = quiet_unraisable
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  logging.getLogger("absl").addFilter(
    lambda record: "/orbax/" not in record.pathname
  )


def half_written(workdir: str) -> list[str]:
  """The names of checkpoints that a killed run has begun and not finished."""
  folder = checkpoints_folder(workdir)
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  return sorted(name for name in names if ".orbax-checkpoint-tmp" in name)


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: Any,
  config: dict[str, Any],
  visits: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Starts to save `state` as `step`, unless that has been saved already.

  Args:
    manager: from `open_checkpoints`.
    step: the state's.
    state: a tree of arrays.
    config: the run's configuration, saved beside it.
    visits: PairStatistics.arrays(), saved beside it if there are any.

  Raises:
    UserError: it cannot be saved, or the one before it could not be.
  """
  if step == manager.latest_step():
    return
  items = {
    "state": ocp.args.StandardSave(state),
    "config": ocp.args.JsonSave(run_folder.document(config)),
  }
  if visits:
    items["visits"] = ocp.args.StandardSave(dict(visits))
  with _saving(manager):
    manager.save(step, args=ocp.args.Composite(**items), force=True)


def wait(manager: ocp.CheckpointManager) -> None:
  """Until what `save` has started is saved; UserError where it cannot be."""
  with _saving(manager):
    manager.wait_until_finished()


@contextlib.contextmanager
def _saving(manager):
  """Says in words what Orbax raises of a disk, perhaps of an earlier save."""
  try:
    yield
  except (OSError, ValueError, RuntimeError) as error:
    if distributed.lost_the_others(error):  # no fault of the disk
      raise
    raise UserError(
      f"no checkpoint can be saved in {manager.directory}"
      f" ({_first_line(error)}); make room, or mend the folder"
      f" ({_what_is_there(manager.directory)})"
    ) from error


def _what_is_there(folder):
  try:
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  except OSError:
    steps = []
  return f"whole there: {', '.join(map(str, steps)) or 'none'}"


def _first_line(error):
  return str(error).strip().split("\n")[0][:300] or type(error).__name__


def restore(manager: ocp.CheckpointManager, step: int, abstract: Any) -> Any:
  """The state saved as `step`.

  Args:
    manager: from `open_checkpoints`.
    step: one of `manager.all_steps()`.
    abstract: a dataclass or dict of ShapeDtypeStructs with shardings: what is
      expected, and where it is to lie. Any topology may restore what another
      saved. LATER_COUNTERS begin at 0 where the checkpoint is older.

  Raises:
    UserError: the checkpoint holds another model, is damaged or is of a newer
      format.
  """
  try:
    config = ocp.args.Composite(config=ocp.args.JsonRestore())
    document = manager.restore(step, args=config).config
    version, _ = run_folder.of_known_format(document, f"checkpoint {step}")
    expected, later = _fields(abstract), {}
    if version < run_folder.FORMAT_VERSION:
      later = {k: expected.pop(k) for k in LATER_COUNTERS if k in expected}
      abstract_there = expected
    else:
      abstract_there = abstract
    items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_there))
    restored = manager.restore(step, args=items).state
  except (ValueError, KeyError, TypeError, OSError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"checkpoint {step} in {manager.directory} does not fit the configured"
      f" model, or is damaged: {str(error)[:600]}; to go on from an earlier one"
      f" ({_what_is_there(manager.directory)}), move {step} out of the folder"
    ) from error
  if later:
    zeros = {
      name: jax.jit(
        functools.partial(jnp.zeros, leaf.shape, leaf.dtype),
        out_shardings=leaf.sharding,
      )()
      for name, leaf in later.items()
    }
    restored = type(abstract)(**restored, **zeros)
  return restored


def _fields(tree):
  return dict(tree if isinstance(tree, Mapping) else vars(tree))


def restore_visits(
  manager: ocp.CheckpointManager, step: int
) -> dict[str, np.ndarray]:
  """The `visits` saved with `step`, {} if there were none."""
  if not (manager.directory / str(step) / "visits").exists():
    return {}
  items = ocp.args.Composite(visits=ocp.args.StandardRestore())
  return manager.restore(step, args=items).visits


def restore_parts(
  workdir: str, step: int | None, names: Sequence[str]
) -> tuple[int, dict[str, Any]]:
  """Parts of a saved state as host arrays, and their step.

  Args:
    workdir: of the run.
    step: None for the latest.
    names: fields of TrainState, such as `ema_params`.

  Raises:
    UserError: there is no such checkpoint.
  """
  directory = checkpoints_folder(workdir)
  if not directory.is_dir():
    raise UserError(f"{workdir} has no checkpoints; has the run been trained?")
  with open_checkpoints(workdir, read_only=True) as manager:
    steps = manager.all_steps()
  if not steps:
    raise UserError(f"{directory} holds no finished checkpoint")
  step = max(steps) if step is None else step
  if step not in steps:
    raise UserError(f"{directory} holds the steps {sorted(steps)}, not {step}")
  item = directory / str(step) / "state"
  host = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with ocp.PyTreeCheckpointer() as checkpointer:
    saved = checkpointer.metadata(item).item_metadata.tree
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
