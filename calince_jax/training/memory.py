"""What a run needs at the least, before minutes of compiling show it.

A lower bound, so that nothing that fits is refused: the state, spread over all
devices; and on each device its clips and the input of every transformer block,
which even config.model.remat="full" keeps. `plan` has the real numbers.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from calince_jax.errors import UserError
from calince_jax.models import transformer
from calince_jax.runtime import sharding

STATE_BYTES = 16  # of a parameter: itself, its average, Adam's two moments
GIB = 2**30


def check(config: Mapping[str, Any], mesh: Mesh) -> None:
  """UserError where a device cannot hold its part of the run.

  Args:
    config: of the run, checked.
    mesh: of devices that are here.
  """
  needed, limit = least_bytes(config, mesh), bytes_of_a_device()
  total = sum(needed.values())
  if total > limit:
    parts = ", ".join(
      f"{name} {size / GIB:,.1f} GiB" for name, size in needed.items()
    )
    raise UserError(
      f"each of the {mesh.size} device(s) needs at least {total / GIB:,.1f} GiB"
      f" and has {limit / GIB:,.1f} GiB: {parts}; lower config.batch_size="
      f"{config['batch_size']} or the size of the model, raise"
      " config.grad_cache_chunks, or use more devices"
    )


def least_bytes(config: Mapping[str, Any], mesh: Mesh) -> dict[str, int]:
  """Bytes on each device, by what they are for."""
  data, model = config["data"], config["model"]
  rows = -(-config["batch_size"] // sharding.batch_ways(mesh))
  encoded = -(-rows // config["grad_cache_chunks"])
  T, S, L = data["num_frames"], data["image_size"], data["text_length"]
  parameters = inputs = 0
  if model["video"]["name"] == "vit":
    size = transformer.size(model["video"]["size"])
    t, p = model["video"]["tubelet"]
    blocks = size.depth + model["video"]["temporal_depth"]
    parameters += _of_block(size) * blocks
    inputs += (T // t) * (S // p) ** 2 * size.width * blocks
  if model["video"]["name"] == "frame_vit":
    size = transformer.size(model["video"]["size"])
    tokens = (S // model["video"]["patch"]) ** 2
    parameters += _of_block(size) * size.depth
    inputs += T * tokens * size.width * size.depth
  if model["text"]["name"] in ("transformer", "bert", "clip_text"):
    size = transformer.size(model["text"]["size"])
    parameters += _of_block(size) * size.depth
    inputs += L * size.width * size.depth
  needed = {
    "state": STATE_BYTES * parameters // mesh.size,
    "clips": rows * T * S * S * 3,
    "blocks": 2 * encoded * inputs,  # of two bytes at the least
  }
  if config["similarities"]["form"] == "dense":
    needed["similarities"] = 4 * config["batch_size"] ** 2 // mesh.size
  return needed


def _of_block(size):
  """Parameters of its products."""
  hidden = size.hidden or 4 * size.width
  return 4 * size.width**2 + 2 * size.width * hidden


def bytes_of_a_device() -> int:
  """The memory of a local device; CPU devices share that of the machine."""
  device = jax.local_devices()[0]
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return limit or _bytes_of_the_machine() // jax.local_device_count()


def _bytes_of_the_machine() -> int:
  size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  limit = Path("/sys/fs/cgroup/memory.max")  # of a container
  if limit.exists():
    text = limit.read_text().strip()
    size = min(size, int(text)) if text.isdecimal() else size
  return size
