"""Saving and restoring a run with Orbax.

WORKDIR/checkpoints/STEP holds the whole TrainState (state) and the
configuration that made it (config), which WORKDIR/config.json repeats, so that
a run can be continued, evaluated or exported from its folder alone.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from calince_jax.errors import UserError

FORMAT_VERSION = 1


def checkpoints_folder(workdir: str) -> epath.Path:
  """WORKDIR/checkpoints, absolute, as Orbax wants it."""
  path = epath.Path(workdir)
  # A bucket's name is absolute as it is, and must not be taken for a folder.
  return (path if "://" in workdir else path.resolve()) / "checkpoints"


def open_checkpoints(
  workdir: str, *, keep: int = 1, read_only: bool = False
) -> ocp.CheckpointManager:
  """The checkpoints of a run; saves are asynchronous.

  Args:
    workdir: of the run; a local path or one of Google Cloud Storage.
    keep: the number of latest checkpoints that are kept.
    read_only: for evaluation and export.
  """
  return ocp.CheckpointManager(
    checkpoints_folder(workdir),
    options=ocp.CheckpointManagerOptions(
      max_to_keep=None if read_only else keep,
      create=not read_only,
      read_only=read_only,
    ),
  )


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: Any,
  config: dict[str, Any],
) -> None:
  """Starts to save `state` as `step`, unless that has been saved already.

  Args:
    manager: from `open_checkpoints`.
    step: the state's.
    state: a tree of arrays.
    config: the run's configuration, saved beside it.
  """
  if step != manager.latest_step():
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      config=ocp.args.JsonSave(_document(config)),
    )
    manager.save(step, args=items, force=True)


def restore(manager: ocp.CheckpointManager, step: int, abstract: Any) -> Any:
  """The state saved as `step`.

  Args:
    manager: from `open_checkpoints`.
    step: one of `manager.all_steps()`.
    abstract: a tree of ShapeDtypeStructs with shardings: what is expected,
      and where it is to lie. Any topology may restore what another saved.

  Raises:
    UserError: the checkpoint holds another model.
  """
  try:
    items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    return manager.restore(step, args=items).state
  except (ValueError, KeyError) as error:
    raise UserError(
      f"checkpoint {step} in {manager.directory} does not fit the configured"
      f" model: {str(error)[:600]}"
    ) from error


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


def write_config(workdir: str, config: dict[str, Any]) -> None:
  """Writes WORKDIR/config.json, or checks that it says the same.

  Raises:
    UserError: the folder holds a run with another configuration.
  """
  path = epath.Path(workdir) / "config.json"
  config = json.loads(json.dumps(config))  # tuples become lists, as in a file
  if path.exists():
    differences = _differences(read_config(workdir), config)
    if differences:
      raise UserError(
        f"{workdir} holds a run with another configuration"
        f" ({'; '.join(differences[:5])}); choose another --workdir"
      )
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    json.dumps(_document(config), indent=2, sort_keys=True) + "\n"
  )


def read_config(workdir: str) -> dict[str, Any]:
  """The configuration of a run; UserError where there is none."""
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    raise UserError(f"{workdir} is not the folder of a run: no config.json")
  try:
    document = json.loads(path.read_text())
    version, config = document["format_version"], document["config"]
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  if version > FORMAT_VERSION:
    raise UserError(
      f"{path} is of format {version}, newer than this program's"
      f" {FORMAT_VERSION}; update calince_jax"
    )
  return config


def _document(config):
  return {"format_version": FORMAT_VERSION, "config": config}


# What may change between the parts of one run.
FREE_KEYS = (
  "log_every",
  "checkpoint_every",
  "keep_checkpoints",
  "evaluate_every",
  "evaluate_splits",
  "data.cache",
  "data.max_bad_fraction",
)


def _differences(old, new, prefix=""):
  found = []
  for key in sorted(old.keys() | new.keys()):
    name = prefix + key
    if name in FREE_KEYS:
      continue
    if key not in old or key not in new:
      found.append(f"{name} {'is new' if key in new else 'is gone'}")
    elif isinstance(old[key], dict) and isinstance(new[key], dict):
      found += _differences(old[key], new[key], name + ".")
    elif old[key] != new[key]:
      found.append(f"{name}: {old[key]!r} became {new[key]!r}")
  return found
