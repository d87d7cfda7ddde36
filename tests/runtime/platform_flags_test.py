"""Flags are added where the platform is there, and the user's own win."""

import os
import subprocess
import sys

import pytest

from calince_jax.runtime import platform_flags


@pytest.fixture
def installed(monkeypatch):
  """The modules that are found."""
  found = set()
  monkeypatch.setattr(
    platform_flags, "_installed", lambda module: module in found
  )
  return found


def test_without_an_accelerator_nothing_is_set(installed):
  environment = {"XLA_FLAGS": "--mine"}
  assert platform_flags.apply(environment) == []
  assert environment == {"XLA_FLAGS": "--mine"}


def test_flags_of_the_user_stay_and_win(installed, monkeypatch):
  installed |= {"libtpu", "jax_cuda12_plugin"}
  monkeypatch.setattr(platform_flags, "TPU", {"xla_tpu_a": "1", "xla_b": "2"})
  environment = {"LIBTPU_INIT_ARGS": "--xla_tpu_a=7 --other"}
  gpu = [f"--{name}={value}" for name, value in platform_flags.GPU.items()]
  assert platform_flags.apply(environment) == ["--xla_b=2", *gpu]
  assert environment == {
    "LIBTPU_INIT_ARGS": "--xla_tpu_a=7 --other --xla_b=2",
    "XLA_FLAGS": " ".join(gpu),
  }


def test_jax_knows_every_flag_of_gpus():
  """XLA ends the process on a flag of XLA_FLAGS that it does not know."""
  gpu = [f"--{name}={value}" for name, value in platform_flags.GPU.items()]
  done = subprocess.run(
    [sys.executable, "-c", "import jax; jax.devices()"],
    env=os.environ | {"XLA_FLAGS": " ".join(gpu), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert gpu and done.returncode == 0, done.stderr
