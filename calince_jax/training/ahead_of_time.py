"""The real train step, compiled for devices that are not here, and its cost.

Nothing is run and no data is read: shapes, the compiler's memory analysis and
the compiled program's text say whether a run fits, what it communicates, and
how fast it could be at best.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from calince_jax.data.tokenizer import Vocabulary
from calince_jax.errors import UserError
from calince_jax.models.cali_nce import dummy_batch
from calince_jax.runtime import chips, hlo, sharding
from calince_jax.runtime.chips import Chip
from calince_jax.training import flops, setup

# Parts of the training state, and what they are called in a plan.
STATE = {
  "params": "parameters",
  "opt_state": "optimizer",
  "ema_params": "moving average",
  "calibration": "calibration",
}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a train step needs and does; bytes and operations of one device.

  Attributes:
    batch_size: of the global batch.
    devices: number of devices.
    slices: groups of devices that each hold all parameters.
    parameters: number of parameters of the model.
    state: bytes of each part of the training state, see STATE.
    replicated: (path, bytes) of larger leaves that every device holds whole.
    input: bytes of the batch.
    temporaries: bytes of activations, gradients, gathered weights and the loss,
      at their highest; what was needed where the step does not fit.
    fits: whether the compiler accepted it.
    flops: operations of a step, on all devices, recomputation included.
    model_flops: operations of a step without recomputation.
    sent: bytes that a device sends in a step, by kind of collective.
    sent_between_slices: the part of it that crosses slices.
    memory_traffic: bytes to and from HBM in a step, an upper estimate.
  """

  batch_size: int
  devices: int
  slices: int
  parameters: int
  state: Mapping[str, int]
  replicated: Sequence[tuple[str, int]]
  input: int
  temporaries: int
  fits: bool
  flops: int
  model_flops: int
  sent: Mapping[str, int]
  sent_between_slices: int
  memory_traffic: int

  @property
  def memory(self) -> int:
    """Bytes of HBM in all."""
    return sum(self.state.values()) + self.input + self.temporaries


def plan_step(
  config: Mapping[str, Any],
  devices: Sequence[jax.Device],
  *,
  vocab_size: int,
  num_pairs: int,
) -> Plan:
  """Compiles the train step of a configuration for `devices`.

  Args:
    config: checked.
    devices: such as those of runtime/topologies.py.
    vocab_size: of the tokenizer.
    num_pairs: of the data.

  Raises:
    UserError: two values of the configuration do not fit each other.
  """
  mesh = setup.open_mesh(config, devices)
  training = setup.compile_training(
    config, mesh, vocabulary=Vocabulary(vocab_size), num_pairs=num_pairs
  )
  batch = abstract_batch(training, config["batch_size"])
  state = {
    label: _bytes(getattr(training.abstract, part), getattr(layout, part))
    for layout in [training.layout]
    for part, label in STATE.items()
  }
  ways = sharding.batch_ways(mesh)
  shared = {
    "batch_size": config["batch_size"],
    "devices": mesh.size,
    "slices": sharding.num_slices(mesh),
    "parameters": sum(
      x.size for x in jax.tree.leaves(training.abstract.params)
    ),
    "state": state,
    "replicated": sharding.replicated_leaves(
      training.abstract.params, training.layout.params
    ),
    "input": sum(map(_leaf_bytes, jax.tree.leaves(batch))) // ways,
    "flops": flops.count(training.step, training.abstract, batch),
    "model_flops": model_flops(
      config, mesh, vocabulary=Vocabulary(vocab_size), num_pairs=num_pairs
    ),
  }
  try:
    compiled = training.step.lower(training.abstract, batch).compile()
  except jax.errors.JaxRuntimeError as error:
    return Plan(
      **shared,
      temporaries=_exhausted(error),
      fits=False,
      sent={},
      sent_between_slices=0,
      memory_traffic=0,
    )
  program = hlo.read_program(compiled.as_text())
  inside = mesh.size // shared["slices"]
  return Plan(
    **shared,
    temporaries=compiled.memory_analysis().temp_size_in_bytes,
    fits=True,
    sent=program.sent_bytes(),
    sent_between_slices=round(
      sum(
        c.sent_bytes
        for c in program.collectives
        if sharding.num_networks(devices) > 1
        and (c.group == shared["slices"] or c.group > inside)
      )
    ),
    memory_traffic=program.memory_traffic,
  )


def abstract_batch(
  training: setup.Training, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes and dtypes of a batch that the step takes."""
  batch = jax.eval_shape(lambda: dummy_batch(training.model.config, batch_size))
  if training.objective.confidence == "given":
    batch["given_confidence"] = jax.ShapeDtypeStruct((batch_size,), np.float32)
  return batch


def model_flops(
  config: Mapping[str, Any],
  mesh: Mesh,
  *,
  vocabulary: Vocabulary,
  num_pairs: int,
) -> int:
  """Operations of a step on all devices, without recomputation.

  Args:
    config: checked.
    mesh: of the run.
    vocabulary: of the tokenizer.
    num_pairs: of the data.
  """
  plain = dict(config) | {
    "model": config["model"] | {"remat": "none"},
    "grad_cache_chunks": 1,
  }
  training = setup.compile_training(
    plain, mesh, vocabulary=vocabulary, num_pairs=num_pairs
  )
  batch = abstract_batch(training, config["batch_size"])
  return flops.count(training.step, training.abstract, batch)


def peak_rate(
  config: Mapping[str, Any],
  mesh: Mesh,
  *,
  vocabulary: Vocabulary,
  num_pairs: int,
) -> float | None:
  """Steps a second at the peak of the devices, with nothing but the model.

  Args:
    config: checked.
    mesh: of the run.
    vocabulary: of the tokenizer.
    num_pairs: of the data.

  Returns:
    None for devices that runtime/chips.py does not have, such as CPUs; nothing
    is traced then.
  """
  chip = chips.of_device(mesh.devices.flat[0].device_kind)
  if chip is None:
    return None
  step = model_flops(config, mesh, vocabulary=vocabulary, num_pairs=num_pairs)
  return chip.flops * mesh.size / step


def seconds(plan: Plan, chip: Chip) -> dict[str, float]:
  """The time of a step by each limit of the chip; none can be beaten.

  Returns:
    `products`, `memory` and `network`, seconds; they overlap at best, so a step
    takes at least the largest.
  """
  slow = plan.sent_between_slices
  fast = sum(plan.sent.values()) - slow
  return {
    "products": plan.flops / plan.devices / chip.flops,
    "memory": plan.memory_traffic / chip.memory_bandwidth,
    "network": fast / chip.fast_network + slow / chip.slow_network,
  }


def _bytes(tree, layout):
  """Bytes of a tree on one device."""
  return sum(
    _leaf_bytes(leaf)
    * np.prod(place.shard_shape(leaf.shape), dtype=np.int64)
    // max(leaf.size, 1)
    for leaf, place in zip(
      jax.tree.leaves(tree), jax.tree.leaves(layout), strict=True
    )
  ).item()


def _leaf_bytes(leaf):
  return leaf.size * np.dtype(leaf.dtype).itemsize


def _exhausted(error: Exception) -> int:
  """The bytes that a program would need, from the compiler's message."""
  text = str(error)
  if "RESOURCE_EXHAUSTED" not in text:
    raise error
  units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}
  match = re.search(r"[Uu]sed ([\d.]+)([KMGT]?)", text)
  match = match or re.search(r"\(([\d.]+)([KMGT])\) exceeds", text)
  if not match:
    raise UserError(f"it does not fit: {text.splitlines()[0][:300]}")
  return round(float(match.group(1)) * units[match.group(2)])
