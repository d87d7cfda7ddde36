"""What a compiled program communicates and moves, read from its HLO text.

    program = read_program(jax.jit(f, ...).lower(...).compile().as_text())
    program.sent_bytes()        # {"all-gather": bytes, ...} a device and step
    program.memory_traffic      # bytes to and from memory, a device and step

The text is that of one device (SPMD), so shapes are per device. What stands in
the body of a loop counts as often as the loop is run: XLA writes the count of
every `lax.scan` (`known_trip_count`), or a constant that its condition compares
the counter with.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# Operations that move nothing: names for parts of other buffers, or control.
_FREE = frozenset(
  {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
  }
)

_COMPUTATION = re.compile(r"^\s*(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
  r"(body|condition|true_computation|false_computation|to_apply|calls)="
  r"%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_VECTOR_MEMORY = "S(1)"  # in a layout
_CONSTANT = re.compile(r"%([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{('[^}]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_WHERE = re.compile(r'op_name="([^"]*)"')
_AXIS_SIZE = re.compile(r"'([^']+)'=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program.

  Attributes:
    kind: one of KINDS.
    shapes: (dtype, dimensions) of each array in its result, per device.
    group: number of devices that take part together; 0 where it is not written.
    times: how often it is run in a step.
    where: the line of the program's Python code, as far as XLA names it.
  """

  kind: str
  shapes: tuple[tuple[str, tuple[int, ...]], ...]
  group: int
  times: int
  where: str

  @property
  def result_bytes(self) -> int:
    """Size of its results on each device, of all its runs."""
    return self.times * sum(map(_size, self.shapes))

  @property
  def sent_bytes(self) -> float:
    """What each device sends in a ring of n = `group` devices, all its runs.

    Of a result of s bytes: 2 s (n - 1) / n for an all-reduce, s (n - 1) / n for
    an all-gather and an all-to-all, s (n - 1) for a reduce-scatter, whose
    operand has n s bytes, and s for a permute.
    """
    n = self.group
    share = (n - 1) / n if n else 1.0
    factor = {
      "all-reduce": 2 * share,
      "all-gather": share,
      "reduce-scatter": n - 1 if n else 1.0,
      "all-to-all": share,
      "collective-permute": 1.0,
    }[self.kind]
    return factor * self.result_bytes


@dataclasses.dataclass(frozen=True)
class Program:
  """What one run of a program does on each device.

  Attributes:
    collectives: all of them.
    memory_traffic: bytes; the operands and results in main memory of all
      instructions that are not inside a fusion. An upper estimate: what stays
      in a cache counts, but not what a TPU keeps in its vector memory.
  """

  collectives: tuple[Collective, ...]
  memory_traffic: int

  def sent_bytes(self) -> dict[str, int]:
    """Bytes that each device sends, by kind of collective."""
    totals: dict[str, float] = collections.Counter()
    for collective in self.collectives:
      totals[collective.kind] += collective.sent_bytes
    return {kind: round(totals[kind]) for kind in KINDS if kind in totals}


def read_program(hlo: str) -> Program:
  """Reads `compiled.as_text()`."""
  computations = _computations(hlo)
  times = _multiplicities(computations)
  found, traffic = [], 0
  for name, lines in computations.items():
    if times[name]:
      found += _collectives(lines, computations, times[name])
      traffic += times[name] * _traffic(lines, computations)
  return Program(tuple(found), traffic)


def _collectives(
  lines: Sequence[str], computations: Mapping[str, Sequence[str]], times: int
) -> Iterator[Collective]:
  """Those of a computation, also inside its fusions, each once.

  On TPUs a collective that runs beside other work stands in several fusions,
  with one channel, and an all-reduce whose result is sliced is a fusion.
  """
  channels = set()
  for line in lines:
    match = _INSTRUCTION.match(line)
    if not match:
      continue
    fused = match.group(3) == "fusion"
    for one in _called(line, computations) if fused else [line]:
      inner = _INSTRUCTION.match(one)
      kind = inner.group(3).removesuffix("-start") if inner else ""
      if kind not in KINDS:
        continue
      channel = _CHANNEL.search(one)
      if channel and channel.group(1) in channels:
        continue
      channels |= {channel.group(1)} if channel else set()
      arrays = _arrays(inner.group(2))
      if fused and "calls=%all-reduce-scatter" in line:
        kind, arrays = "reduce-scatter", _arrays(match.group(2))
      # The asynchronous form returns its operands as well, and first.
      if inner.group(3) in ("all-gather-start", "collective-permute-start"):
        arrays = [array for array in arrays if array != ("u32", ())]
        arrays = arrays[len(arrays) // 2 :]
      where = _WHERE.search(one)
      yield Collective(
        kind=kind,
        shapes=tuple(arrays),
        group=_group_size(one),
        times=times,
        where=where.group(1) if where else "",
      )


def _called(line, computations):
  """The lines of the computation that a fusion calls."""
  match = _CALLS.search(line)
  return computations[match.group(1)] if match else [line]


def _traffic(
  lines: Sequence[str], computations: Mapping[str, Sequence[str]]
) -> int:
  """Bytes of operands and results of the instructions of a computation.

  Of an array of which a part is taken or replaced, the part counts: a scan
  keeps the activations of all its layers in one array, and each turn writes or
  reads one layer.
  """
  sizes: dict[str, int] = {}
  total = 0
  for line in lines:
    match = _INSTRUCTION.match(line)
    if not match:
      continue
    name, result, operation = match.groups()
    sizes[name] = sum(map(_size, _arrays(result, in_main_memory=True)))
    if operation in _FREE or operation.endswith("-done"):
      continue
    if operation in ("copy-start", "slice-start"):
      # (to, from, context) or ((from), to, context): what is moved leaves or
      # enters main memory, and `from` is the operand once more.
      moved = [_size(array) for array in _arrays(result)]
      total += min(moved[:2])
      continue
    operands = _operands(line)
    read = [sizes.get(operand, 0) for operand in operands]
    written = sizes[name]
    if operation in ("dynamic-slice", "gather", "slice"):
      read = [written]
    elif operation == "dynamic-update-slice":
      read, written = read[1:2], read[1]
    elif operation == "fusion":
      read, written = _of_fusion(_called(line, computations), read, written)
    total += written + sum(read)
  return total


def _of_fusion(
  body: Sequence[str], read: Sequence[int], written: int
) -> tuple[list[int], int]:
  """What a fusion reads of each operand, and writes: parts where it may."""
  parameters: dict[str, int] = {}  # and their bitcasts: number of the operand
  sizes: dict[str, int] = {}
  parts = [0] * len(read)
  for line in body:
    match = _INSTRUCTION.match(line)
    if not match:
      continue
    name, result, operation = match.groups()
    sizes[name] = sum(map(_size, _arrays(result)))
    if operation == "parameter":
      parameters[name] = int(line[match.end() :].split(")", 1)[0])
      continue
    operands = _operands(line)
    if operation == "bitcast" and operands[0] in parameters:
      parameters[name] = parameters[operands[0]]
      continue
    for i, operand in enumerate(operands):
      if operand not in parameters:
        continue
      part = sizes[operand]
      if i == 0 and operation in ("dynamic-slice", "gather", "slice"):
        part = sizes[name]
      elif i == 0 and operation == "dynamic-update-slice":
        part = 0
      parts[parameters[operand]] += part
    if operation == "dynamic-update-slice":
      written -= sizes[name] - sizes.get(operands[1], 0)
  return [min(pair) for pair in zip(read, parts, strict=True)], max(written, 0)


def _operands(line: str) -> list[str]:
  """The names of an instruction's operands."""
  match = _INSTRUCTION.match(line)
  return _OPERAND.findall(line[match.end() :].split(")", 1)[0])


def _group_size(line):
  listed = _LISTED_GROUPS.search(line)
  if listed:
    return len([d for d in listed.group(1).split(",") if d])
  iota = _IOTA_GROUPS.search(line)
  if iota:
    return int(iota.group(2))
  mesh = _MESH_GROUPS.search(line)
  if mesh:
    sizes = {name: int(n) for name, n in _AXIS_SIZE.findall(mesh.group(1))}
    return math.prod(sizes[a] for a in re.findall(r"'([^']+)'", mesh.group(2)))
  return 0


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


def _multiplicities(
  computations: Mapping[str, Sequence[str]],
) -> Mapping[str, int]:
  """How often each computation is run; 0 for the inside of a fusion."""
  calls: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
  for name, lines in computations.items():
    for line in lines:
      match = _INSTRUCTION.match(line)
      if not match or match.group(3) not in ("while", "conditional", "call"):
        continue
      called = _CALLED.findall(line)
      trips = _trips(line, called, computations)
      for role, callee in called:
        calls[name].append((callee, trips if role == "body" else 1))
      for branches in _BRANCHES.findall(line):
        calls[name] += [(b.strip(" %"), 1) for b in branches.split(",")]
  times: dict[str, int] = collections.Counter()

  def visit(name, count):
    times[name] += count
    for callee, each in calls[name]:
      visit(callee, count * each)

  visit("ENTRY", 1)
  return times


def _trips(line, called, computations) -> int:
  """How often the body of a loop is run; 1 where that is not written."""
  match = _TRIPS.search(line)
  if match:
    return int(match.group(1))
  for role, name in called:
    if role == "condition" and name in computations:
      lines = computations[name]
      constants = dict(_CONSTANT.findall("\n".join(lines)))
      (root,) = (one for one in lines if one.lstrip().startswith("ROOT"))
      if "direction=LT" in root:
        for operand in _OPERAND.findall(root.split("compare(", 1)[-1]):
          if operand in constants:
            return int(constants[operand])
  return 1


def _arrays(
  text: str, in_main_memory: bool = False
) -> list[tuple[str, tuple[int, ...]]]:
  return [
    (dtype, tuple(int(d) for d in dims.split(",") if d))
    for dtype, dims, layout in _ARRAY.findall(text)
    if not in_main_memory or _VECTOR_MEMORY not in layout
  ]


def _size(array: tuple[str, tuple[int, ...]]) -> int:
  """Bytes of (dtype, dimensions)."""
  dtype, shape = array
  digits = re.search(r"\d+", dtype)
  bits = 8 if dtype == "pred" else int(digits.group()) if digits else 0
  return bits * math.prod(shape) // 8
