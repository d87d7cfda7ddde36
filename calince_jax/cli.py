"""How every command starts, and how bad input ends it."""

import contextlib
import dataclasses
import io
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from absl import app, flags, logging
from ml_collections import config_flags

from calince_jax.errors import UserError
from calince_jax.files import FULL

T = TypeVar("T")
LONGEST = 2000  # characters of a message


def run(
  main: Callable[[], object],
  *,
  interrupted: str = "the same command starts over",
) -> None:
  """Parses the flags and runs `main`; bad input ends with a line, status 2.

  An error ends the process at once, whatever its threads wait for.

  Args:
    main: the command.
    interrupted: what Ctrl-C means for its work.
  """
  let_print_anything()
  # Until now an interrupt ended the process (calince_jax/__init__.py).
  signal.signal(signal.SIGINT, signal.default_int_handler)

  def guarded(argv):
    if len(argv) > 1:
      _fail(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    if not any("verbosity" in word for word in sys.argv):
      # Remarks of the libraries would hide the lines of progress.
      logging.set_verbosity(logging.ERROR)
    try:
      main()
    except Exception as error:
      message = explanation(error)
      if message is None:
        raise
      _fail(message)

  try:
    app.run(guarded, flags_parser=parse)
  except SystemExit as end:
    if end.code:
      exit_now(end.code)
    raise
  except KeyboardInterrupt:
    print(f"error: interrupted; {interrupted}", file=sys.stderr, flush=True)
    exit_now(2)
  except BaseException:
    traceback.print_exc()
    exit_now(1)


def let_print_anything() -> None:
  """Has what a terminal's character set lacks printed as escapes."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")


def exit_now(status: object) -> NoReturn:
  """Ends the process, with what it has printed and without its threads.

  A library's thread that waits for a disk or for another process would keep the
  interpreter for ever.
  """
  for stream in (sys.stdout, sys.stderr):
    # A pipe may be closed at its other end.
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(status if isinstance(status, int) else 1)


def explanation(error: BaseException) -> str | None:
  """What to tell of an error that is no fault of this program, else None."""
  if isinstance(error, UserError):
    return str(error)
  if isinstance(error, MemoryError):
    return "there is not enough memory for this"
  if isinstance(error, BrokenPipeError):
    return "what reads the output has ended"
  if not isinstance(error, OSError):
    return None
  # A full disk, a folder that may not be written, a missing config file.
  where = f"{error.filename}: " if error.filename else ""
  if error.errno in FULL:
    return f"{where}the disk is full; make room, and run the same command again"
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return f"{where}{error.strerror}" if error.strerror else lines[-1]


def options(kind: type[T]) -> T:
  """The flags as a dataclass with one field for each flag, of its name.

  Raises:
    UserError: a number is nan or infinite, which bounds of flags let pass.
  """
  names = [field.name for field in dataclasses.fields(kind)]
  values = {name: flags.FLAGS[name].value for name in names}
  for name, value in values.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"--{name}={value} must be a finite number")
  return kind(**values)


class _Number(flags.ArgumentParser):
  """Of a key that may be None: configs/base.py says which; `check` the rest."""

  def __init__(self, number: flags.ArgumentParser):
    super().__init__()
    self._number = number
    self.syntactic_help = number.syntactic_help

  def parse(self, argument: object) -> object:
    return None if argument in (None, "None") else self._number.parse(argument)

  def flag_type(self) -> str:
    return self._number.flag_type()


# The command line of a configuration can then say None where it has a number.
for _kind, _parser in (
  (float, flags.FloatParser()),
  (int, flags.IntegerParser()),
):
  config_flags.register_flag_parser_for_type(_kind, _Number(_parser))


def parse(
  argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Sets the flags, and returns the other arguments; a wrong flag exits."""
  try:
    return flag_values(argv)
  except flags.Error as error:
    if "Traceback" in str(error):  # ml_collections', of the file of --config
      reason = error.__cause__ or error.__context__ or error
      last = str(error).strip().splitlines()[-1]
      # What the file itself says of its argument.
      last = last.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
      _fail(f"the configuration: {_config_error(argv, reason) or last}")
    _fail(f"{error} (--help lists the flags)")
  # ml_collections raises these as they are.
  except (KeyError, AttributeError) as error:
    if said := _config_error(argv, error):
      _fail(f"the configuration: {said}")
    reason: object = error  # an AttributeError around a KeyError, or either
    while isinstance(reason, Exception):
      reason = reason.args[0]
    key, _, hint = str(reason).partition("\n")  # Did you mean ...?
    key = key.strip("\"'")
    _fail(f"the configuration has no key {key!r}; see configs/base.py. {hint}")
  # A configuration file is a program, and may raise anything.
  except Exception as error:
    _fail(f"the configuration: {_config_error(argv, error) or error}")


def _config_error(argv: Sequence[str], error: Exception) -> str | None:
  """What is wrong with the file of --config; None where it is not the file."""
  given = [word for word in argv if word.startswith("--config=")]
  if not given:
    return None
  path = given[-1].partition("=")[2].partition(":")[0]
  if not path.endswith(".py"):
    return f"--config={path} must be a file *.py; see configs/"
  if not os.path.isfile(path):
    return f"--config={path}: there is no such file; see configs/"
  if isinstance(error, SyntaxError):
    return f"{error.filename} line {error.lineno}: {error.msg}"
  frames = traceback.extract_tb(error.__traceback__)
  inside = [
    f for f in frames if os.path.realpath(f.filename) == os.path.realpath(path)
  ]
  if not inside:
    return None
  kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
  return f"{path} line {inside[-1].lineno}: {kind}{error}"


def one_line(error: object) -> str:
  """A message as it is printed: text from a file cannot control a terminal.

  White space becomes one blank, other control characters are escaped, and what
  is longer than LONGEST is cut.
  """
  text = " ".join(str(error).split())
  text = text if len(text) <= LONGEST else text[:LONGEST] + " ..."
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _fail(error: object) -> None:
  print(f"error: {one_line(error)}".strip(), file=sys.stderr, flush=True)
  sys.exit(2)
