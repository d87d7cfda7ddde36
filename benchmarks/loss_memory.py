"""Temporary memory of the contrastive loss and its gradient, per device.

    python -m benchmarks.loss_memory --out=runs/loss/memory.md

Compiles and does not run: ours against others on eight simulated devices, then
ours on 2, 4 and 8 of them. For TPU pods, on any machine, with the compiler in
PyPI's libtpu (`pip install "jax[tpu]==VERSION OF jax"` where nothing else
needs the environment):

    python -m benchmarks.loss_memory --tpu --out=runs/loss/memory_tpu.md
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks import contrastive_peers

D = 512
BATCHES = ["4096", "8192", "32768", "131072"]
# Topology, slices, HBM of a chip in GiB as its vendor states it.
PODS = (
  ("v5e:16x16", 1, 16),
  ("v5e:16x16", 2, 16),
  ("v5p:4x4x4", 1, 95),
)
POD_BATCHES = (65536, 1048576)


def main(argv: Sequence[str]) -> None:
  """Compiles, prints, writes."""
  del argv
  F = flags.FLAGS
  out = Path(F.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  batches = [int(batch) for batch in F.batches]
  lines = list(pods() if F.tpu else simulated(batches, F.pairs_per_device))
  out.write_text("\n".join(lines) + "\n")
  print(f"wrote {out}")


def simulated(batches: Sequence[int], pairs_per_device: int) -> Iterator[str]:
  """The tables of simulated devices, line by line."""
  mesh = mesh_of(jax.devices())
  losses = {"ours": contrastive_peers.ours} | contrastive_peers.PEERS
  yield from printed(
    f"MiB of temporary memory on each of {mesh.size} simulated devices, value"
    f" and gradient, D = {D}, float32:",
    "",
    f"| global batch | {' | '.join(losses)} | ours of the best other |",
    f"|---|{'---|' * len(losses)}---|",
  )
  for N in batches:
    mib = [compile_loss(make(mesh), mesh, N)[0] for make in losses.values()]
    row = " | ".join(f"{x:,.0f}" for x in mib)
    yield from printed(f"| {N:,} | {row} | {mib[0] / min(mib[1:]):.2f} |")
  yield from printed(
    "",
    f"Ours with {pairs_per_device:,} pairs on each device:",
    "",
    "| devices | global batch | MiB a device |",
    "|---|---|---|",
  )
  for count in (2, 4, 8):
    mesh = mesh_of(jax.devices()[:count])
    N = pairs_per_device * count
    mib, _ = compile_loss(contrastive_peers.ours(mesh), mesh, N)
    yield from printed(f"| {count} | {N:,} | {mib:,.1f} |")


def pods() -> Iterator[str]:
  """The table of TPU pods, line by line."""
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
  import libtpu

  library = Path(libtpu.__file__).with_name("libtpu.so")
  os.environ.setdefault("TPU_LIBRARY_PATH", str(library))
  yield from printed(
    f"Ours compiled for TPU pods, value and gradient, D = {D}:",
    "",
    "| pod | chips | global batch | products | MiB a chip: temporary |"
    " in all | free of its HBM | compiled in |",
    "|---|---|---|---|---|---|---|---|",
  )
  for name, slices, hbm in PODS:
    topology = topologies.get_topology_desc(
      platform="tpu",
      topology_name=name,
      **({"num_slices": slices} if slices > 1 else {}),
    )
    mesh = mesh_of(topology.devices)
    for N in POD_BATCHES:
      for products in ("float32", "bfloat16"):
        loss = contrastive_peers.ours(mesh, matmul_dtype=products)
        start = time.perf_counter()
        temporary, everything = compile_loss(loss, mesh, N)
        seconds = time.perf_counter() - start
        free = 1 - everything / (hbm * 1024)
        yield from printed(
          f"| {name}{f' x {slices} slices' if slices > 1 else ''} |"
          f" {mesh.size} | {N:,} | {products} | {temporary:,.0f} |"
          f" {everything:,.0f} | {free:.1%} of {hbm} GiB | {seconds:.0f} s |"
        )


def mesh_of(devices) -> Mesh:
  """One axis over all of them."""
  return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def compile_loss(loss, mesh, N) -> tuple[float, float]:
  """MiB on each device: temporary; and with arguments and results."""
  shapes = ((N, D), (N, D), (N,), ())
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  step = contrastive_peers.value_and_grad(loss, mesh)
  memory = step.lower(*arguments).compile().memory_analysis()
  everything = (
    memory.temp_size_in_bytes
    + memory.argument_size_in_bytes
    + memory.output_size_in_bytes
  )
  return memory.temp_size_in_bytes / 2**20, everything / 2**20


def printed(*lines: str) -> Iterator[str]:
  """Yields the lines, and prints each."""
  for line in lines:
    print(line, flush=True)
    yield line


if __name__ == "__main__":
  flags.DEFINE_string("out", "runs/loss/memory.md", "the table to write")
  flags.DEFINE_bool("tpu", False, "compile for TPU pods instead")
  flags.DEFINE_list("batches", BATCHES, "global batch sizes")
  flags.DEFINE_integer("pairs_per_device", 4096, "in the second table", 1)
  app.run(main)
