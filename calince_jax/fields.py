"""What each field of a settings dataclass may hold, and the check of it.

The type, the range and the choices of a setting are declared once, in the
annotation of the field that uses it:

    batch_size: Annotated[int, Range("[1, 1e9]")]
    noise_rate: Annotated[float | None, Range("[0, 1)")]
    dtype: Annotated[str, OneOf(("float32", "bfloat16"))]
    vocab_size: Annotated[int, Range("[5, 1e9]"), DERIVED]

A field whose type is another settings dataclass is a section of its own.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from calince_jax.errors import UserError

# Marks a field that code fills in: it is no key of a configuration.
DERIVED = object()
# Marks a key that may differ between the parts of one run: what is logged and
# kept, where the data lies, and how (not what) the devices compute.
MAY_CHANGE = object()

LONGEST = 80  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers of an interval: brackets as in mathematics, ( and ) exclude."""

  interval: str

  def contains(self, value: float) -> bool:
    """Whether a number lies in it; nan does not."""
    low, high = self._bounds()
    inside = low <= value <= high
    inside &= not (value == low and self.interval[0] == "(")
    return inside and not (value == high and self.interval[-1] == ")")

  def describe(self, value: Any) -> str:
    """What a number must be, for the message about `value`."""
    low, high = self._bounds()
    number = type(value) in (int, float)
    if not number or self.contains(value) or value > high or high < 1e6:
      return f" in {self.interval}"
    return f", {'at least' if self.interval[0] == '[' else 'above'} {low:g}"

  def _bounds(self) -> tuple[float, float]:
    low, high = self.interval[1:-1].split(",")
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class OneOf:
  """One of a few texts."""

  choices: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ByName:
  """A section whose own key `name` chooses the dataclass that describes it."""

  kinds: Mapping[str, type]

  def choose(self, values: Any, where: str) -> type:
    """The dataclass of the section `where`; UserError on an unknown name."""
    if not isinstance(values, Mapping):
      raise UserError(f"{where} is {shown(values)}, not a dictionary")
    if "name" not in values:
      raise UserError(f"{where} lacks the key 'name'; see configs/base.py")
    check_value(
      Annotated[str, OneOf(tuple(self.kinds))], values["name"], f"{where}.name"
    )
    return self.kinds[values["name"]]


@dataclasses.dataclass(frozen=True)
class Check:
  """A value of a form of its own.

  Attributes:
    fits: whether a value is of that form.
    wanted: the form, in words that follow "must be".
  """

  fits: Callable[[Any], bool]
  wanted: str


@functools.cache
def annotations(kind: type, derived: bool = False) -> Mapping[str, Any]:
  """{name: annotation} of a dataclass's fields.

  Args:
    kind: a settings dataclass.
    derived: whether fields that are DERIVED are among them.
  """
  hints = typing.get_type_hints(kind, include_extras=True)
  return {
    field.name: hints[field.name]
    for field in dataclasses.fields(kind)
    if derived or DERIVED not in marks(hints[field.name])
  }


def marks(annotation: Any) -> tuple:
  """What stands behind the type in an `Annotated`, () where it is none."""
  return getattr(annotation, "__metadata__", ())


def check(
  kind: type,
  values: Any,
  where: str,
  *,
  prefix: str = "",
  derived: bool = False,
) -> None:
  """Checks every key of a section against the fields of a dataclass.

  Args:
    kind: the dataclass.
    values: what a configuration or a JSON file says.
    where: names the configuration or file, for messages.
    prefix: of the section within it, such as "model.".
    derived: whether the section also holds the fields that are DERIVED.

  Raises:
    UserError: a key is missing or unknown, or a value does not fit.
  """
  if not isinstance(values, Mapping):
    name = f"{where}.{prefix}".strip(".")
    raise UserError(f"{name} is {shown(values)}, not a dictionary")
  wanted = annotations(kind, derived)
  for problem, names in (
    ("lacks the key", [name for name in wanted if name not in values]),
    ("has an unknown key", [name for name in values if name not in wanted]),
  ):
    if names:
      key = f"{prefix}{names[0]}"
      raise UserError(f"{where} {problem} {key!r}; see configs/base.py")
  for name, annotation in wanted.items():
    value, key = values[name], f"{prefix}{name}"
    kind = section(annotation)
    if isinstance(kind, ByName):
      kind = kind.choose(value, f"{where}.{key}")
    if kind is None:
      check_value(annotation, value, f"{where}.{key}")
    else:
      check(kind, value, where, prefix=f"{key}.", derived=derived)


def check_instance(settings: Any) -> None:
  """Checks the fields of a settings dataclass; call it in `__post_init__`.

  Raises:
    UserError: a value does not fit its annotation.
  """
  where = type(settings).__name__
  for name, annotation in annotations(type(settings), derived=True).items():
    if section(annotation) is None:
      check_value(annotation, getattr(settings, name), f"{where}.{name}")


def section(annotation: Any) -> type | ByName | None:
  """The dataclass of a section, None where a field holds a plain value."""
  for mark in marks(annotation):
    if isinstance(mark, ByName):
      return mark
  kind = getattr(annotation, "__origin__", annotation)
  return kind if dataclasses.is_dataclass(kind) else None


def flatten(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """(key, annotation) of all keys, as in a configuration: "model.dropout".

  Of a section that is chosen by name, the keys of the first choice.
  """
  for name, annotation in annotations(kind).items():
    inner = section(annotation)
    if isinstance(inner, ByName):
      inner = next(iter(inner.kinds.values()))
    if inner is None:
      yield prefix + name, annotation
    else:
      yield from flatten(inner, f"{prefix}{name}.")


def check_value(annotation: Any, value: Any, name: str) -> None:
  """UserError, which calls the value `name`, unless it fits the annotation."""
  extra = marks(annotation)
  kind = getattr(annotation, "__origin__", annotation) if extra else annotation
  if isinstance(kind, types.UnionType):
    if value is None:
      return
    (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
  for mark in extra:
    if isinstance(mark, Check):
      _demand(mark.fits(value), name, value, mark.wanted)
      return
    if isinstance(mark, OneOf):
      known = isinstance(value, str) and value in mark.choices
      _demand(known, name, value, f"one of {list(mark.choices)}")
      return
  interval = next((mark for mark in extra if isinstance(mark, Range)), None)
  if kind is bool:
    _demand(isinstance(value, bool), name, value, "True or False")
  elif kind is str:
    _demand(isinstance(value, str), name, value, "a text")
  elif kind in (int, float):
    fits = type(value) in (int, kind)
    fits = fits and (interval is None or interval.contains(value))
    words = {int: "a whole number", float: "a number"}[kind]
    words += interval.describe(value) if interval else ""
    _demand(fits, name, value, words)


def shown(value: Any) -> str:
  """A value as a message shows it."""
  text = repr(value)
  return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def is_list(value: Any) -> bool:
  """Whether it is a list or a tuple: JSON knows no tuples."""
  return isinstance(value, (list, tuple))


def _demand(fits, name, value, wanted):
  if not fits:
    raise UserError(f"{name}={shown(value)} must be {wanted}")
