"""Saving and restoring a run with Orbax.

WORKDIR/checkpoints/STEP holds the whole TrainState (state) and the
configuration that made it (config), which WORKDIR/config.json repeats, so that
a run can be resumed, evaluated or exported from its folder alone.
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


def half_written(workdir: str) -> list[str]:
  """The names of checkpoints that a killed run did not finish writing."""
  folder = checkpoints_folder(workdir)
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  return sorted(name for name in names if ".orbax-checkpoint-tmp" in name)


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
    "config": ocp.args.JsonSave(run_folder.document(config)),
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
  except (OSError, ValueError, RuntimeError) as error:
    if distributed.is_lost_connection(error):  # not an error of the disk
      raise
    raise UserError(
      f"no checkpoint can be saved in {manager.directory}"
      f" ({_first_line(error)}); make room, or repair the folder"
      f" ({_complete_steps(manager.directory)})"
    ) from error


def _complete_steps(folder):
  try:
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  except OSError:
    steps = []
  return f"complete there: {', '.join(map(str, steps)) or 'none'}"


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
  try:
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
  except (ValueError, KeyError, TypeError, OSError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"checkpoint {step} in {manager.directory} does not fit the configured"
      f" model, or is damaged: {str(error)[:600]}; to resume from an earlier"
      f" one ({_complete_steps(manager.directory)}), move {step} out of the"
      " folder"
    ) from error
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


def _fields(tree):
  return dict(tree if isinstance(tree, Mapping) else vars(tree))


def restore_pair_statistics(
  manager: ocp.CheckpointManager, step: int
) -> dict[str, np.ndarray]:
  """The pair statistics saved with `step`; {} if there were none."""
  for name in (PAIR_STATISTICS, OLD_PAIR_STATISTICS):
    if (manager.directory / str(step) / name).exists():
      items = ocp.args.Composite(**{name: ocp.args.StandardRestore()})
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
