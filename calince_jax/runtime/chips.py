"""What accelerators can do at most: one table for plans and for the MFU."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """The limits of one device of JAX, from its vendor's data sheet.

  Attributes:
    memory: bytes of HBM.
    flops: dense bfloat16 operations a second.
    memory_bandwidth: bytes a second to and from HBM.
    fast_network: bytes a second to the chips of its slice or host (TPU: ICI;
      GPU: NVLink), over all links, in one direction.
    slow_network: bytes a second between slices or hosts, its share.
  """

  memory: float
  flops: float
  memory_bandwidth: float
  fast_network: float
  slow_network: float


# The peaks of TPUs are those of cloud.google.com/tpu/docs, pages v4, v5e, v5p,
# v6e and tpu7x; half of what they call bidirectional is one direction. A v4 or
# v5p chip is one device, though it has two cores; a tpu7x chip is two devices,
# each with half of it. Those of GPUs are NVIDIA's data sheets of the SXM form:
# A100 80GB, H100, H200, and HGX B200, without sparsity; between hosts, one
# network adapter of 200 (A100) or 400 Gbit/s for each GPU.
CHIPS = {
  "v4": Chip(32 * 2**30, 275e12, 1228e9, 300e9, 25e9 / 4),
  "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9, 25e9 / 8),
  "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9, 25e9 / 4),
  "v6e": Chip(32 * 2**30, 918e12, 1640e9, 400e9, 100e9 / 8),
  "tpu7x": Chip(96 * 2**30, 2307e12 / 2, 7380e9 / 2, 300e9, 25e9 / 4),
  "A100": Chip(80e9, 312e12, 2039e9, 300e9, 25e9),
  "H100": Chip(80e9, 989e12, 3350e9, 450e9, 50e9),
  "H200": Chip(141e9, 989e12, 4800e9, 450e9, 50e9),
  "B200": Chip(180e9, 2250e12, 7700e9, 900e9, 50e9),
}

# What JAX calls the devices. Other forms of a GPU (PCIe, NVL) reach less, and
# are not in the table; the A100 with 40 GB multiplies as fast.
KINDS = {
  "TPU v4": "v4",
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
  "TPU7x": "tpu7x",
  "NVIDIA A100-SXM4-40GB": "A100",
  "NVIDIA A100-SXM4-80GB": "A100",
  "NVIDIA H100 80GB HBM3": "H100",
  "NVIDIA H200": "H200",
  "NVIDIA B200": "B200",
}


def of_device(device_kind: str) -> Chip | None:
  """The limits of a device, by its `device_kind`; None of one not known."""
  name = KINDS.get(device_kind)
  return None if name is None else CHIPS[name]
