"""The folder of a run: what it was begun with, and that it is still the same.

WORKDIR/config.json       the configuration, with its format's version
WORKDIR/data.json         which data sets, by their content
WORKDIR/tokenizer.model   of their captions
WORKDIR/warm_start.csv    which weights it started from, where it did
"""

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from calince_jax.errors import UserError
from calince_jax.files import read_file, read_json, read_text, write_atomic

FORMAT_VERSION = 4  # of checkpoints and config.json
WARM_START = "warm_start.csv"  # what became of each array of config.init
# What train, evaluate and report write into a run folder.
WRITTEN = (
  "checkpoints", "config.json", "data.json", "eval", "events.jsonl",
  "ledger*.csv", "lock.json", "metrics.jsonl", "report.html", "stall*.txt",
  "tensorboard", "tokenizer.model", WARM_START, "*.partial",
)  # fmt: skip
# What a launcher may have put there before.
BESIDE = (".*", "*.log", "*.out", "*.err", "*.txt", "*.py", "*.sh", "*.yaml")


def check_free(workdir: str) -> None:
  """UserError unless the folder is a run's, or could become one's.

  A run that was killed when it began has written some of its files alone.
  """
  folder = epath.Path(workdir)
  if not folder.exists() or exists(workdir):
    return
  if not folder.is_dir():
    raise UserError(f"--workdir={workdir} is not a folder; choose another")
  foreign = [
    path.name
    for path in folder.iterdir()
    if not any(fnmatch.fnmatch(path.name, one) for one in WRITTEN + BESIDE)
  ]
  if foreign:
    raise UserError(
      f"--workdir={workdir} is neither empty nor the folder of a run: it holds"
      f" {', '.join(sorted(foreign)[:3])}; choose another"
    )


def begin(
  workdir: str,
  config: dict[str, Any],
  tokenizer: Path,
  folders: Sequence[str],
  infos: Sequence[Any],
  *,
  confidences: str | None,
  earlier: dict[str, Any] | None,
  may_change: Sequence[str],
) -> None:
  """Starts or resumes a run; a folder of another run is left as it is.

  Args:
    workdir: of the run.
    config: its configuration.
    tokenizer: the file of its data.
    folders: of its data sets, in the order of the mix.
    infos: the DatasetInfo of each.
    confidences: the SHA-256 of the table of them; None: there is none.
    earlier: the configuration that the folder holds; None in a new one.
    may_change: keys and sections in which the two may differ.

  Raises:
    UserError: the folder holds a run with another configuration or other data.
  """
  if earlier is not None:
    now = json.loads(json.dumps(config))  # tuples become lists, as in a file
    changes = differences(earlier, now, may_change)
    if changes:
      raise UserError(
        f"{workdir} holds a run with another configuration"
        f" ({'; '.join(changes[:5])}); choose another --workdir"
      )
  contents = {
    "tokenizer.model": tokenizer_of(workdir, tokenizer),
    "data.json": data_of(workdir, folders, infos, confidences),
    "config.json": json.dumps(document(config), indent=2, sort_keys=True)
    + "\n",
  }
  epath.Path(workdir).mkdir(parents=True, exist_ok=True)
  for name, content in contents.items():
    write_atomic(epath.Path(workdir) / name, content)


def exists(workdir: str) -> bool:
  """Whether the folder holds a run."""
  return (epath.Path(workdir) / "config.json").exists()


def read_document(workdir: str) -> tuple[int, dict[str, Any]]:
  """The format and the configuration of a run, as they were written.

  Raises:
    UserError: there is none, it is damaged, or of a newer format.
  """
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    raise UserError(f"{workdir} is not the folder of a run: no config.json")
  document = read_json(path)
  try:
    return check_format(document, path)
  except UserError:
    raise
  except (ValueError, KeyError, TypeError) as error:
    why = f"{type(error).__name__}: {error}"
    raise UserError(f"{path} is damaged: {why}") from error


def document(config: dict[str, Any]) -> dict[str, Any]:
  """What is written of a configuration."""
  return {"format_version": FORMAT_VERSION, "config": config}


def check_format(
  document: Mapping[str, Any], where: object
) -> tuple[int, dict[str, Any]]:
  """The format of a `document`, and the configuration in it.

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
  return version, config


def differences(
  old: Mapping[str, Any],
  new: Mapping[str, Any],
  ignored: Sequence[str] = (),
  prefix: str = "",
) -> list[str]:
  """What differs between two nested dicts, in words.

  Args:
    old, new: of plain values.
    ignored: keys such as "data.cache", of values or of whole sections.
    prefix: of the keys of this level.
  """
  found = []
  for key in sorted(old.keys() | new.keys()):
    name = prefix + key
    if name in ignored:
      continue
    if key not in old or key not in new:
      found.append(f"{name} {'is new' if key in new else 'is gone'}")
    elif isinstance(old[key], dict) and isinstance(new[key], dict):
      found += differences(old[key], new[key], ignored, name + ".")
    elif old[key] != new[key]:
      found.append(f"{name}: {old[key]!r} became {new[key]!r}")
  return found


# ---------------------------------------------------------------- its data


def tokenizer_of(workdir: str, path: Path) -> bytes:
  """The data's tokenizer; UserError where the run began with another."""
  content = read_file(path)
  kept = epath.Path(workdir) / "tokenizer.model"
  if kept.exists() and read_file(kept) != content:
    raise UserError(
      f"{path} is not the tokenizer that {workdir} began with: its data was"
      " prepared anew; choose another --workdir"
    )
  return content


def data_of(
  workdir: str,
  folders: Sequence[str],
  infos: Sequence[Any],
  confidences: str | None,
) -> str:
  """The text of data.json: what the data sets hold, wherever they lie.

  The step number says which samples come next, so a run may find its data in
  another place, but not other data.

  Args:
    workdir: of the run.
    folders: of the data sets, in the order of the mix.
    infos: the DatasetInfo of each.
    confidences: see `begin`.

  Raises:
    UserError: a data set is another one, or was prepared anew, or the table of
      confidences is another.
  """
  kept = epath.Path(workdir) / "data.json"
  now = [json.loads(json.dumps(vars(info))) for info in infos]
  for one in now:
    del one["name"]  # of the folder
    if confidences is not None:
      one["confidences"] = confidences
  text = json.dumps(now, indent=1) + "\n"
  if not kept.exists():
    return text
  try:
    before = [dict(one) for one in json.loads(read_text(kept))]
  except UserError:
    raise
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
        f" {'; '.join(differences(old, new)[:5])}; name the same data in"
        " config.data.datasets, or choose another --workdir"
      )
  return text
