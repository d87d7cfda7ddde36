"""Two runs in one folder: at once, and one after the other."""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.survival.processes import (
  SECONDS,
  finish,
  last_step,
  rows,
  start,
)


def two_at_once(words: Sequence[str], workdir: Path) -> list[tuple[int, str]]:
  """Status and last words of two runs that are started together."""
  logs = [workdir.with_name(f"{workdir.name}.{i}.log") for i in range(2)]
  both = [
    start("train", *words, f"--workdir={workdir}", log=log) for log in logs
  ]
  return [
    (process.wait(SECONDS), log.read_text().strip().splitlines()[-1])
    for process, log in zip(both, logs, strict=True)
  ]


def staggered(
  words: Sequence[str], workdir: Path, number: int, rng: random.Random
) -> dict[str, Any]:
  """Starts others, one after the other, beside a run that goes on.

  Returns:
    `refused`: how many were, in one line that names the run; `words` of those
    that were not; whether the run was still `alive` then; its `status` after
    SIGTERM, and the `steps` in its log.
  """
  log = workdir.with_suffix(".log")
  first = start("train", *words, f"--workdir={workdir}", log=log)
  while not last_step(workdir):
    if first.poll() is not None:
      break
    time.sleep(0.1)
  refused, other = 0, []
  for i in range(number):
    time.sleep(rng.random())
    mine = workdir.with_name(f"{workdir.name}.other{i}.log")
    second = start("train", *words, f"--workdir={workdir}", log=mine)
    status = second.wait(SECONDS)
    said = mine.read_text().strip()
    fine = f"another run is at work in {workdir}: process {first.pid} on"
    if status == 2 and fine in said and "Traceback" not in said:
      refused += 1
    else:
      other.append(f"status {status}: {said[-500:]}")
  alive = first.poll() is None
  first.terminate()  # it saves itself
  finish(first, log)
  return {
    "refused": refused,
    "words": other,
    "alive": alive,
    "status": first.returncode,
    "steps": [row["step"] for row in rows(workdir)],
  }
