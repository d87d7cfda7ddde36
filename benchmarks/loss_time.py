"""Times the contrastive loss and its gradient, ours against others.

    python -m benchmarks.loss_time --devices=8 --batch=4096
    python -m benchmarks.loss_time --devices=1 --batch=8192 \
      --open_clip=PATH/open_clip/loss.py

The losses take turns in one run, so that the ratios hold on a noisy machine.
With --open_clip the file of open_clip_torch 3.3.0 is timed, too, in a PyTorch
that can be imported. On a GPU, siglip-kernel 0.1.0 and inf-cl 1.2.1 (each half
of its symmetric loss) are added where they can be imported:

    python -m benchmarks.loss_time --devices=1 --batch=65536 \
      --dtype=bfloat16 --tile=4096 --open_clip=PATH/open_clip/loss.py
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import contrastive_peers, torch_peers
from benchmarks.loss_memory import mesh_of
from calince_jax.losses import nce_kernel

D = 512


def main(argv: Sequence[str]) -> None:
  """Compiles each loss, times them in turns, writes the table."""
  del argv
  F = flags.FLAGS
  turns = jax_turns(F.devices, F.batch, F.dtype, F.tile)
  if F.open_clip:
    turns |= torch_peers.turns(F.open_clip, F.batch, D, F.dtype)
  seconds = {name: [] for name in turns}
  for name, turn in list(turns.items()):
    try:
      turn()  # warms up
    except Exception as error:  # out of memory says much about a peer
      print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
      del turns[name]
  for _ in range(F.rounds):
    for name, turn in turns.items():
      start = time.perf_counter()
      turn()
      seconds[name].append(time.perf_counter() - start)
  where = "simulated devices" if F.devices > 1 else "device"
  lines = [
    f"Global batch {F.batch:,}, D = {D}, {F.dtype}, {F.devices} {where}"
    f" ({jax.devices()[0].device_kind}), median of {F.rounds} rounds in turn:",
    "",
    "| loss, value and gradient | ms | ours takes of its time |",
    "|---|---|---|",
  ]
  for name in turns:
    ratios = [
      ours / its
      for ours, its in zip(seconds["ours"], seconds[name], strict=True)
    ]
    lines.append(
      f"| {name} | {1e3 * statistics.median(seconds[name]):,.0f} |"
      f" {statistics.median(ratios):.2f} ({min(ratios):.2f} to"
      f" {max(ratios):.2f}) |"
    )
  print("\n".join(lines))
  out = Path(F.out or f"runs/loss/time_{F.devices}_{F.batch}.md")
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text("\n".join(lines) + "\n")
  print(f"wrote {out}")


def jax_turns(
  devices: int, N: int, dtype: str, tile: int
) -> dict[str, Callable[[], None]]:
  """Functions that compute each loss and its gradient once, and wait."""
  mesh = mesh_of(jax.devices()[:devices])
  makers = {
    "ours": lambda mesh: contrastive_peers.ours(
      mesh, tile=tile, matmul_dtype=dtype
    ),
    "ours, nothing kept": lambda mesh: contrastive_peers.ours(
      mesh, tile=tile, matmul_dtype=dtype, max_saved_bytes=0
    ),
  } | contrastive_peers.PEERS
  if jax.default_backend() == "gpu":
    makers["ours, pallas"] = lambda mesh: contrastive_peers.ours(
      mesh, tile=tile, matmul_dtype=dtype, kernel=nce_kernel
    )
  if devices == 1:  # then these are the dense loss
    makers = {
      name: make
      for name, make in makers.items()
      if name not in ("all_gather", "ring")
    }
  rng = np.random.default_rng(0)
  rows = NamedSharding(mesh, P("data"))
  x = rng.normal(size=(2, N, D)).astype(np.float32)
  video, text = x / np.linalg.norm(x, axis=-1, keepdims=True)
  arrays = [jnp.asarray(y, dtype) for y in (video, text)]
  arrays.append(jnp.asarray(rng.random(N), jnp.float32))
  arguments = *(jax.device_put(y, rows) for y in arrays), jnp.float32(14.3)

  def turn_of(make):
    function = contrastive_peers.value_and_grad(make(mesh), mesh)
    return lambda: jax.block_until_ready(function(*arguments))

  return {name: turn_of(make) for name, make in makers.items()}


if __name__ == "__main__":
  flags.DEFINE_integer("devices", 8, "number of devices", 1)
  flags.DEFINE_integer("batch", 4096, "global batch size", 1)
  flags.DEFINE_integer("rounds", 7, "number of timed rounds", 1)
  flags.DEFINE_integer("tile", 1024, "rows of a tile of our loss", 1)
  flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "of embeddings and products"
  )
  flags.DEFINE_string("open_clip", None, "path of open_clip/loss.py")
  flags.DEFINE_string(
    "out", None, "the table to write; default: runs/loss/time_*.md"
  )
  app.run(main)
