"""The folder of a run: what it was begun with, and that it is still the same.

WORKDIR/config.json       the configuration, with its format's version
WORKDIR/data.json         which data sets, by their content
WORKDIR/tokenizer.model   of their captions
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from calince_jax.errors import UserError
from calince_jax.files import write_atomic

FORMAT_VERSION = 2  # of checkpoints and config.json
# What a configuration of an older format lacks, as it was then.
LATER_SETTINGS = {  # since format 2
  "micro_batches": 1,
  "stall_seconds": 1800,
  "alarms": {"loss_spike": 10.0, "effective_sample_share": 0.05},
  "data": {"max_bad_fraction": 0.01},
  "objective": {"mask_repeats": False},
  "similarities": {
    "form": "dense",
    "tile": 1024,
    "products": "float32",
    "keep": 2**23,
    "kernel": "xla",
  },
}


def begin(
  workdir: str,
  config: dict[str, Any],
  tokenizer: Path,
  folders: Sequence[str],
  infos: Sequence[Any],
) -> None:
  """Begins a run, or goes on with it; nothing is written where it is another.

  Args:
    workdir: of the run.
    config: its configuration.
    tokenizer: the file of its data.
    folders: of its data sets, in the order of the mix.
    infos: the DatasetInfo of each.

  Raises:
    UserError: the folder holds a run with another configuration or other data.
  """
  contents = {
    "tokenizer.model": tokenizer_of(workdir, tokenizer),
    "data.json": data_of(workdir, folders, infos),
    "config.json": config_of(workdir, config),
  }
  epath.Path(workdir).mkdir(parents=True, exist_ok=True)
  for name, content in contents.items():
    write_atomic(epath.Path(workdir) / name, content)


def config_of(workdir: str, config: dict[str, Any]) -> str:
  """The text of config.json; UserError where what is there is another run."""
  config = json.loads(json.dumps(config))  # tuples become lists, as in a file
  if (epath.Path(workdir) / "config.json").exists():
    differences = _differences(read_config(workdir), config)
    if differences:
      raise UserError(
        f"{workdir} holds a run with another configuration"
        f" ({'; '.join(differences[:5])}); choose another --workdir"
      )
  return json.dumps(document(config), indent=2, sort_keys=True) + "\n"


def read_config(workdir: str) -> dict[str, Any]:
  """The configuration of a run, of this format or an older one.

  Raises:
    UserError: there is none, it is damaged, or of a newer format.
  """
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    raise UserError(f"{workdir} is not the folder of a run: no config.json")
  try:
    return of_known_format(json.loads(path.read_text()), path)[1]
  except UserError:
    raise
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    why = f"{type(error).__name__}: {error}"
    raise UserError(f"{path} is damaged: {why}") from error


def document(config: dict[str, Any]) -> dict[str, Any]:
  """What is written of a configuration."""
  return {"format_version": FORMAT_VERSION, "config": config}


def of_known_format(
  document: Mapping[str, Any], where: object
) -> tuple[int, dict[str, Any]]:
  """The format of a `document`, and its configuration, later keys filled in.

  Raises:
    UserError: it is of a newer format; `where` is named.
    KeyError, TypeError: it is no such document.
  """
  version, config = document["format_version"], document["config"]
  if version > FORMAT_VERSION:
    raise UserError(
      f"{where} is of format {version}, newer than this program's"
      f" {FORMAT_VERSION}; update calince_jax"
    )
  if not isinstance(config, dict):
    raise TypeError("its configuration is no object")
  return version, config if version == FORMAT_VERSION else _filled(config)


def _filled(config, later=LATER_SETTINGS):
  """`config` with those of `later` that it lacks."""
  filled = {**later, **config}
  for key, value in later.items():
    # What stands there in another form is for config_checks to say.
    if isinstance(value, dict) and isinstance(filled[key], dict):
      filled[key] = _filled(filled[key], value)
  return filled


# What may change between the parts of one run: what is watched and kept, where
# the data lies, and on what it runs (the numbers are equal but for rounding).
FREE_KEYS = (
  "log_every",
  "checkpoint_every",
  "keep_checkpoints",
  "evaluate_every",
  "evaluate_splits",
  "stall_seconds",
  "alarms",
  "data.cache",
  "data.datasets",
  "data.max_bad_fraction",
  "micro_batches",
  "model.remat",
  "sharding",
  "similarities.form",
  "similarities.tile",
  "similarities.keep",
  "similarities.kernel",
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


# ---------------------------------------------------------------- its data


def tokenizer_of(workdir: str, path: Path) -> bytes:
  """The data's tokenizer; UserError where the run began with another."""
  content = path.read_bytes()
  kept = epath.Path(workdir) / "tokenizer.model"
  if kept.exists() and kept.read_bytes() != content:
    raise UserError(
      f"{path} is not the tokenizer that {workdir} began with: its data was"
      " prepared anew; choose another --workdir"
    )
  return content


def data_of(workdir: str, folders: Sequence[str], infos: Sequence[Any]) -> str:
  """The text of data.json: what the data sets hold, wherever they lie.

  The step number says which samples come next, so a run may find its data in
  another place, but not other data.

  Args:
    workdir: of the run.
    folders: of the data sets, in the order of the mix.
    infos: the DatasetInfo of each.

  Raises:
    UserError: a data set is another one, or was prepared anew.
  """
  kept = epath.Path(workdir) / "data.json"
  now = [json.loads(json.dumps(vars(info))) for info in infos]
  for one in now:
    del one["name"]  # of the folder
  text = json.dumps(now, indent=1) + "\n"
  if not kept.exists():
    return text
  try:
    before = [dict(one) for one in json.loads(kept.read_text())]
  except (ValueError, TypeError, RecursionError) as error:
    raise UserError(f"{kept} is damaged: {error}") from error
  if len(before) != len(now):
    raise UserError(
      f"{workdir} began with {len(before)} data sets, not {len(now)}"
    )
  for folder, old, new in zip(folders, before, now, strict=True):
    if old != new:
      raise UserError(
        f"{folder} does not hold the data that {workdir} began with:"
        f" {'; '.join(_differences(old, new)[:5])}; name the same data in"
        " config.data.datasets, or choose another --workdir"
      )
  return text
