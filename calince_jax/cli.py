"""How every command starts, and how bad input ends it."""

import dataclasses
import errno
import math
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import app, flags, logging

from calince_jax.errors import UserError

T = TypeVar("T")
LONGEST = 2000  # characters of a message


def run(main: Callable[[], object]) -> None:
  """Parses the flags and runs `main`; bad input ends with a line, status 2."""

  def guarded(argv):
    if len(argv) > 1:
      _fail(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    if not any("verbosity" in word for word in sys.argv):
      # Remarks of the libraries would hide the lines of progress.
      logging.set_verbosity(logging.ERROR)
    try:
      main()
    except UserError as error:
      _fail(error)
    except OSError as error:
      # A full disk, a folder that may not be written, a missing config file.
      if error.errno == errno.ENOSPC:
        _fail("the disk is full; make room, and run the same command again")
      where = f"{error.filename}: " if error.filename else ""
      lines = str(error).strip().splitlines() or [type(error).__name__]
      _fail(f"{where}{error.strerror}" if error.strerror else lines[-1])
    except MemoryError:
      _fail("there is not enough memory for this")
    except KeyboardInterrupt:
      _fail("interrupted; the same command resumes the work")

  app.run(guarded, flags_parser=parse)


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


def parse(
  argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Sets the flags, and returns the other arguments; a wrong flag exits."""
  try:
    return flag_values(argv)
  except flags.Error as error:
    _fail(f"{error} (--help lists the flags)")
  # ml_collections raises these as they are.
  except (KeyError, AttributeError) as error:
    reason: object = error  # an AttributeError around a KeyError, or either
    while isinstance(reason, Exception):
      reason = reason.args[0]
    key, _, hint = str(reason).partition("\n")  # Did you mean ...?
    key = key.strip("\"'")
    _fail(f"the configuration has no key {key!r}; see configs/base.py. {hint}")
  except (UserError, TypeError, ValueError) as error:
    _fail(f"the configuration: {error}")


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
