"""Accelerators that are not here: their devices to compile for, their limits.

`devices("v5e:16x16")` gives devices that `jax.jit(...).lower().compile()`
accepts on a machine with a CPU alone; libtpu, which `pip install "jax[tpu]"`
brings, has the compiler. Nothing can be run on them.
"""

import contextlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import jax

from calince_jax.errors import UserError
from calince_jax.runtime.chips import CHIPS, Chip

# Names that libtpu's compiler knows and that give one device for each chip, or
# for each half of a tpu7x.
TPUS = ("v5e", "v5p", "v6e", "tpu7x")

_GPUS = re.compile(r"gpu:([1-8])xH100")


def describe() -> str:
  """The names that `devices` knows, for a message."""
  return "v5e:16x16, v5p:4x4x4, v6e:16x16 and the like, gpu:8xH100, or cpu:8"


def chip_of(name: str) -> Chip | None:
  """The limits of a topology's chips; None of a CPU."""
  if is_estimate(name):
    return CHIPS["H100"]
  return CHIPS.get(name.partition(":")[0])


def is_estimate(name: str) -> bool:
  """Whether another platform is compiled for than the topology's own.

  The GPUs of one host are planned from the program for simulated CPU devices.
  """
  return bool(_GPUS.fullmatch(name))


def devices(name: str, num_slices: int = 1) -> list[Any]:
  """The devices of a topology.

  Args:
    name: of a TPU slice, KIND:AxB or KIND:AxBxC; gpu:NxH100, at most 8, see
      `is_estimate`; or cpu:N, simulated devices of this machine.
    num_slices: TPU slices that a slower network joins.

  Raises:
    UserError: no such topology, or its compiler is not installed.
  """
  kind, _, shape = name.partition(":")
  if is_estimate(name):
    return _simulated(int(_GPUS.fullmatch(name).group(1)))
  if kind == "cpu" and shape.isdecimal() and int(shape) > 0:
    return _simulated(int(shape))
  if kind not in TPUS or not re.fullmatch(r"[\dx]+", shape):
    raise UserError(f"--topology={name} is unknown; use {describe()}")
  _point_to_libtpu()
  from jax.experimental import topologies

  several = {"num_slices": num_slices} if num_slices > 1 else {}
  try:
    topology = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **several
    )
  except (RuntimeError, ValueError, NotImplementedError) as error:
    reason = str(error).strip().split("\n")[0][:200]
    raise UserError(
      f"--topology={name} with {num_slices} slice(s) is not a TPU topology"
      f" ({reason}); use {describe()}"
    ) from error
  return list(topology.devices)


def _simulated(count):
  """CPU devices; they must be asked for before JAX is first used."""
  with contextlib.suppress(RuntimeError):  # JAX has its devices already
    jax.config.update("jax_num_cpu_devices", count)
  found = jax.devices("cpu")
  if len(found) < count:
    raise UserError(
      f"{count} devices are to be simulated, but JAX was started with"
      f" {len(found)}; run the command in a process of its own"
    )
  return found[:count]


def _point_to_libtpu():
  spec = importlib.util.find_spec("libtpu")
  if spec is None or not spec.submodule_search_locations:
    raise UserError(
      "compiling for a TPU needs libtpu, which is not installed: pip install"
      f' "jax[tpu]=={jax.__version__}" into this environment, or use'
      " --topology=cpu:8"
    )
  library = Path(spec.submodule_search_locations[0]) / "libtpu.so"
  for name, value in {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU to ask about
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_LIBRARY_PATH": str(library),
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another plan may run beside this one
  }.items():
    os.environ.setdefault(name, value)
