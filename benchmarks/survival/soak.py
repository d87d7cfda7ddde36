"""A long run of short epochs, and its memory."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.survival.processes import finish, last_step, start


def soak(
  words: Sequence[str], workdir: Path, every: float
) -> list[tuple[int, float]]:
  """Trains and looks at the resident memory: (step, MiB) every few seconds."""
  log = workdir.with_suffix(".log")
  process = start("train", *words, f"--workdir={workdir}", log=log)
  seen = []
  while process.poll() is None:
    step = last_step(workdir) if (workdir / "metrics.jsonl").exists() else 0
    if step:
      try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        kib = int(status.split("VmRSS:")[1].split()[0])
        seen.append((step, kib / 1024))
      except (OSError, IndexError):  # it has just ended
        break
    time.sleep(every)
  finish(process, log)
  return seen


def slope(seen: Sequence[tuple[int, float]]) -> tuple[float, float]:
  """MiB per 1,000 steps over the second half, and its standard error."""
  steps, memory = np.array(seen[len(seen) // 2 :], np.float64).T
  x = (steps - steps.mean()) / 1000
  b = (x * (memory - memory.mean())).sum() / (x**2).sum()
  rest = memory - memory.mean() - b * x
  error = np.sqrt((rest**2).sum() / max(len(x) - 2, 1) / (x**2).sum())
  return float(b), float(error)
