"""Expands the `sweep()` of a configuration file into runs, checking each.

An override is `"dotted.key": value`. One key is special: "config_argument" is
the argument of `get_config`, `--config=PATH:ARGUMENT` on a command line.
"""

import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from calince_jax.errors import UserError
from launch.workers import Command

ARGUMENT = "config_argument"
MAX_NAME = 200  # bytes; file systems allow 255


@dataclass(frozen=True)
class Run:
  """One run of a sweep: its folder name, overrides, and commands in order."""

  name: str
  overrides: dict[str, Any]
  commands: tuple[Command, ...]


def expand(
  config: str,
  shared: Mapping[str, Any],
  *,
  workdir: str,
  evaluate: str | None = None,
) -> list[Run]:
  """The runs of a configuration's `sweep()`, after checking all of them.

  Args:
    config: the value of --config, a path with or without `:argument`.
    shared: overrides of every run, dotted keys.
    workdir: the folder of run NAME is WORKDIR/NAME.
    evaluate: flags of `calince_jax.evaluate` after training; None: no
      evaluation.

  Raises:
    UserError: there is no sweep(); it yields nothing, something other than a
      dict of overrides, an override that the configuration does not accept, or
      two runs with one name.
  """
  sweep = list(_sweep_of(config)())
  if not sweep:
    raise UserError(f"sweep() of {config} yields nothing")
  for overrides in sweep:
    if not isinstance(overrides, dict):
      raise UserError(
        f"sweep() of {config} yields {overrides!r}; it must yield dicts of"
        ' overrides, such as {"seed": 0}'
      )
  names = run_names(sweep)
  module = (sys.executable, "-m")
  runs = []
  for name, overrides in zip(names, sweep, strict=True):
    twice = sorted(shared.keys() & overrides.keys())
    if twice:
      raise UserError(
        f"{twice[0]!r} is set by sweep() and also by --config.{twice[0]};"
        " remove one of them"
      )
    this = _with_argument(config, overrides)
    words = [
      f"--config.{key}={value}"
      for key, value in {**shared, **overrides}.items()
      if key != ARGUMENT
    ]
    check_overrides(this, words, name)
    folder = f"--workdir={workdir}/{name}"
    train = (*module, "calince_jax.train", f"--config={this}", *words, folder)
    commands = [train]
    if evaluate is not None:
      extra = shlex.split(evaluate)
      commands.append((*module, "calince_jax.evaluate", folder, *extra))
    runs.append(Run(name, overrides, tuple(commands)))
  return runs


def _with_argument(config: str, overrides: Mapping[str, Any]) -> str:
  if ARGUMENT not in overrides:
    return config
  if ":" in config:
    raise UserError(
      f"--config={config}: sweep() sets config_argument, which is what follows"
      " the colon; remove one of them"
    )
  return f"{config}:{overrides[ARGUMENT]}"


def load(config: str) -> ModuleType:
  """Imports the Python file of a --config, with or without `:argument`.

  Raises:
    UserError: there is no such file.
  """
  path = config.split(":", 1)[0]
  spec = importlib.util.spec_from_file_location("sweep_config", path)
  if spec is None or not Path(path).is_file():
    raise UserError(f"--config={config}: there is no Python file {path}")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _sweep_of(config: str) -> Callable[[], Iterable[dict[str, Any]]]:
  module = load(config)
  if not hasattr(module, "sweep"):
    raise UserError(
      f"{config} has no sweep(): write a function beside get_config() that"
      ' yields dicts of overrides, such as {"seed": 0}'
    )
  return module.sweep


def run_names(sweep: Sequence[Mapping[str, Any]]) -> list[str]:
  """The runs' folder names, made of their overrides: `seed=0,power=2`.

  A dotted key is shortened to its last part where that is unambiguous; of
  "config_argument" only the value is written: `infonce,seed=0`.

  Raises:
    UserError: two runs would have the same name, or a name is too long.
  """
  keys = {key for overrides in sweep for key in overrides}
  lasts = [key.split(".")[-1] for key in keys]

  def name(overrides):
    parts = []
    for key, value in overrides.items():
      last = key.split(".")[-1]
      short = last if lasts.count(last) == 1 else key
      plain = re.sub(r"[^\w.+-]+", "_", str(value))
      parts.append(plain if key == ARGUMENT else f"{short}={plain}")
    return ",".join(parts) or "default"

  names = [name(overrides) for overrides in sweep]
  for i, this in enumerate(names):
    if this in names[:i]:
      raise UserError(
        f"sweep() yields two runs of one name: {this}"
        f" ({sweep[names.index(this)]} and {sweep[i]})"
      )
    if len(this.encode()) > MAX_NAME:
      raise UserError(
        f"sweep() yields a run whose name is too long, above {MAX_NAME} bytes:"
        f" {this}"
      )
  return names


def check_overrides(config: str, words: Sequence[str], name: str) -> None:
  """UserError unless train accepts these flags; uses the parser of train."""
  argv = ["train", f"--config={config}", *words]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  try:
    values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    raise UserError(
      f"run {name} of sweep(): {config} does not accept {shlex.join(words)}:"
      f" {str(error).splitlines()[0]}"
    ) from error
