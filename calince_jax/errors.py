"""Errors that speak to the person."""

from collections.abc import Sequence


class UserError(ValueError):
  """Bad input: the message says what is wrong, where, and what to do."""


def check_choice(name: str, value: str, known: Sequence[str]) -> str:
  """Returns `value`, or raises UserError that lists what is known."""
  if value not in known:
    raise UserError(f"{name}={value!r} is unknown; choose one of {list(known)}")
  return value
