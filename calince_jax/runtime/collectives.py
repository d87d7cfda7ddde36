"""What a compiled program communicates, read from its HLO text.

    compiled = jax.jit(f, ...).lower(...).compile()
    total_bytes(read_collectives(compiled.as_text()))

The text is that of one device (SPMD), so shapes are per device. A collective in
the body of a loop counts as often as the loop is run (`known_trip_count`, which
XLA writes for every `lax.scan`).
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)

_BITS = {"pred": 8, "token": 0}  # others have their size in the name
_COMPUTATION = re.compile(r"^\s*(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_CALLED = re.compile(
  r"(body|condition|to_apply|calls|true_computation|false_computation)="
  r"%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program.

  Attributes:
    kind: one of KINDS.
    shapes: (dtype, dimensions) of each array in its result, per device.
    group: number of devices that take part together; 0 where it is not written.
    times: how often it is run.
  """

  kind: str
  shapes: tuple[tuple[str, tuple[int, ...]], ...]
  group: int
  times: int

  @property
  def result_bytes(self) -> int:
    """Size of its result on each device, of all its runs."""
    return self.times * sum(
      _bytes(dtype) * math.prod(shape) for dtype, shape in self.shapes
    )

  @property
  def sent_bytes(self) -> float:
    """What each device sends in a ring of `group` devices, all runs.

    Of a result of s bytes: 2 s (n - 1) / n for an all-reduce, s (n - 1) / n for
    an all-gather and an all-to-all, s (n - 1) for a reduce-scatter, whose
    operand has n s bytes, and s for a permute.
    """
    n = max(self.group, 1)
    share = (n - 1) / n if self.group else 1.0
    factor = {
      "all-reduce": 2 * share,
      "all-gather": share,
      "reduce-scatter": n - 1 if self.group else 1.0,
      "all-to-all": share,
      "collective-permute": 1.0,
    }[self.kind]
    return factor * self.result_bytes


def read_collectives(hlo: str) -> list[Collective]:
  """The collectives of a compiled program, from `compiled.as_text()`."""
  lines = _computations(hlo)
  times = _multiplicities(lines)
  found = []
  for name, body in lines.items():
    for line in body:
      match = _COLLECTIVE.search(line)
      if match and times[name]:
        found.append(_collective(match, line, times[name]))
  return found


def total_bytes(collectives: Iterable[Collective]) -> dict[str, int]:
  """Bytes that each device sends in a step, by kind."""
  totals: dict[str, float] = collections.Counter()
  for collective in collectives:
    totals[collective.kind] += collective.sent_bytes
  return {kind: round(totals[kind]) for kind in KINDS if kind in totals}


def _collective(match, line, times):
  result, kind, started = match.groups()
  arrays = [
    (dtype, tuple(int(d) for d in dims.split(",") if d))
    for dtype, dims in _ARRAY.findall(result)
  ]
  # The asynchronous form returns its operands as well, first.
  if started and kind in ("all-gather", "collective-permute"):
    arrays = [a for a in arrays if a != ("u32", ())]
    arrays = arrays[len(arrays) // 2 :]
  return Collective(kind, tuple(arrays), _group_size(line), times)


def _group_size(line):
  listed = _LISTED_GROUPS.search(line)
  if listed:
    return len([d for d in listed.group(1).split(",") if d])
  iota = _IOTA_GROUPS.search(line)
  return int(iota.group(2)) if iota else 0


def _computations(hlo: str) -> dict[str, list[str]]:
  """{name: lines}; the entry computation is called ENTRY."""
  computations: dict[str, list[str]] = {}
  current: list[str] = []
  for line in hlo.splitlines():
    match = _COMPUTATION.match(line)
    if match:
      name = "ENTRY" if match.group(1) else match.group(2)
      current = computations.setdefault(name, [])
    else:
      current.append(line)
  return computations


def _multiplicities(computations: dict[str, Sequence[str]]) -> dict[str, int]:
  """How often each computation is run in one run of the program."""
  calls: dict[str, list[tuple[str, int]]] = {}
  for name, lines in computations.items():
    calls[name] = []
    for line in lines:
      trips = _TRIPS.search(line)
      for role, callee in _CALLED.findall(line):
        count = int(trips.group(1)) if trips and role == "body" else 1
        calls[name].append((callee, count))
      for branches in _BRANCHES.findall(line):
        calls[name] += [(b.strip(" %"), 1) for b in branches.split(",")]
  times: dict[str, int] = collections.Counter()

  def visit(name, count):
    times[name] += count
    for callee, each in calls.get(name, ()):
      visit(callee, count * each)

  visit("ENTRY", 1)
  return times


def _bytes(dtype: str) -> float:
  if dtype in _BITS:
    return _BITS[dtype] / 8
  digits = re.search(r"\d+", dtype)
  return int(digits.group()) / 8 if digits else 0
