"""Devices are known by the names that JAX gives them, or not at all."""

import jax
import pytest

from calince_jax.runtime import chips, sharding, topologies
from calince_jax.training import ahead_of_time


@pytest.mark.parametrize(
  ("kind", "flops"),
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU7x", 1153.5e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA B200", 2250e12),
  ],
)
def test_the_peak_of_a_device(kind, flops):
  assert chips.of_device(kind).flops == flops


@pytest.mark.parametrize(
  "kind", ["cpu", "TPU v3", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "gpu", ""]
)
def test_nothing_is_made_up_of_other_devices(kind):
  assert chips.of_device(kind) is None


def test_plans_and_the_mfu_read_one_table():
  assert chips.of_device(jax.devices()[0].device_kind) is None
  for name in topologies.TPUS:
    assert topologies.chip_of(f"{name}:2x2") is chips.CHIPS[name]
  assert set(chips.KINDS.values()) == chips.CHIPS.keys()


def test_the_rate_at_the_peak_is_of_all_devices(monkeypatch):
  """4e15 operations on eight devices of 1e15 a second: two steps a second."""
  mesh = sharding.make_mesh(jax.devices())
  sizes = {"vocabulary": None, "num_pairs": 1}
  assert ahead_of_time.peak_rate({}, mesh, **sizes) is None
  monkeypatch.setattr(
    chips, "of_device", lambda kind: chips.Chip(0, 1e15, 0, 0, 0)
  )
  monkeypatch.setattr(ahead_of_time, "model_flops", lambda *_, **__: 4e15)
  assert ahead_of_time.peak_rate({}, mesh, **sizes) == pytest.approx(2)
