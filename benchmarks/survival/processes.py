"""Starts commands as processes, and reads the state of their folders."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calince_jax.errors import UserError
from calince_jax.files import read_lines
from calince_jax.runtime import checkpoint

# Columns of metrics.jsonl that depend on the clock and the machine.
CLOCK = (
  "examples_per_second",
  "examples_per_second_per_device",
  "mfu",
  "goodput",
  "lost_to_start",
  "lost_to_compile",
  "lost_to_data",
  "lost_to_checkpoint",
  "lost_to_evaluation",
  "data_wait_share",
  "resident_memory_mib",
  "seconds_to_first_step",
)
SECONDS = 600.0  # for anything to happen


def start(
  module: str, *words: str, log: Path, devices: int = 1, xla: str = ""
) -> subprocess.Popen:
  """Starts `python -m calince_jax.MODULE WORDS`; what it says goes to `log`."""
  xla += f" --xla_force_host_platform_device_count={devices}"
  settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla}
  with log.open("a") as file:
    return subprocess.Popen(
      [sys.executable, "-m", f"calince_jax.{module}", *words],
      env=os.environ | settings,
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen, log: Path) -> None:
  """Waits for a process that must succeed."""
  if process.wait(SECONDS):
    raise UserError(
      f"a command ended with {process.returncode}: {log.read_text()[-2000:]}"
    )


def until(happens: Callable[[], bool], process: subprocess.Popen) -> bool:
  """Waits until something happens; False where the process ends before."""
  end = time.monotonic() + SECONDS
  while not happens():
    if process.poll() is not None:
      return False
    if time.monotonic() > end:
      process.kill()
      raise UserError(f"nothing happened for {SECONDS:g} s")
    time.sleep(0.002)
  return True


def rows(workdir: Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl, without the columns in CLOCK."""
  found = [json.loads(line) for line in read_lines(workdir / "metrics.jsonl")]
  return [
    {name: x for name, x in row.items() if name not in CLOCK} for row in found
  ]


def last_step(workdir: Path) -> int:
  """The last logged step, 0 if there is none."""
  lines = read_lines(workdir / "metrics.jsonl")
  return json.loads(lines[-1])["step"] if lines else 0


def saving(workdir: Path) -> set[str]:
  """The checkpoints that are being written, or were left so."""
  return set(checkpoint.half_written(str(workdir)))
