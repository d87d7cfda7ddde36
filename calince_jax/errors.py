"""Errors that speak to the person, and the one place that prints them."""

import sys
from collections.abc import Callable, Sequence

from absl import app, logging


class UserError(ValueError):
  """Bad input: the message says what is wrong, where, and what to do."""


def check_choice(name: str, value: str, known: Sequence[str]) -> str:
  """Returns `value`, or raises UserError that lists what is known."""
  if value not in known:
    raise UserError(f"{name}={value!r} is unknown; choose one of {list(known)}")
  return value


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs an entry point; bad input ends in one line and exit status 2.

  Args:
    main: takes what is left of the command line after the flags.
  """

  def parse(argv):
    # ml_collections lets these pass as they are.
    try:
      return app.parse_flags_with_usage(argv)
    except (KeyError, AttributeError) as error:
      key = str(error).strip("\"'")
      fail(f"the configuration has no key {key!r}; see configs/base.py")
    except OSError as error:
      fail(f"the configuration cannot be read: {str(error).splitlines()[-1]}")
    except (UserError, TypeError, ValueError) as error:
      fail(f"the configuration: {error}")

  def guarded(argv):
    if len(argv) > 1:
      fail(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    if not any("verbosity" in word for word in sys.argv):
      # The libraries' own remarks would hide the lines of progress.
      logging.set_verbosity(logging.ERROR)
    try:
      main(argv)
    except UserError as error:
      fail(error)

  app.run(guarded, flags_parser=parse)


def fail(error: object) -> None:
  """Prints one line for the person and leaves with status 2."""
  print(f"error: {error}", file=sys.stderr, flush=True)
  sys.exit(2)
