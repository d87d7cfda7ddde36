"""A run of two processes, of which one is killed."""

import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.survival.processes import (
  SECONDS,
  finish,
  last_step,
  start,
  until,
)


def free_port() -> int:
  """One that nothing listens to."""
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def start_two(
  words: Sequence[str], workdir: Path, **more: Any
) -> list[subprocess.Popen]:
  """Two processes of one run; what they say goes to WORKDIR.{0,1}.log."""
  address = f"localhost:{free_port()}"
  return [
    start(
      "train",
      *words,
      f"--workdir={workdir}",
      f"--coordinator_address={address}",
      "--num_processes=2",
      f"--process_id={i}",
      log=peer_log(workdir, i),
      **more,
    )
    for i in range(2)
  ]


def peer_log(workdir: Path, process: int) -> Path:
  """What a process of `start_two` said."""
  return workdir.with_name(f"{workdir.name}.{process}.log")


def kill_one_of_two(
  words: Sequence[str], workdir: Path, victim: int, at_step: int, **more: Any
) -> dict[str, Any]:
  """Kills one of two processes, waits for the other, and resumes both.

  Returns:
    `seconds` that the other took to end, its `status`, its last `words`.
  """
  pair = start_two(words, workdir, **more)
  until(lambda: last_step(workdir) >= at_step, pair[0])
  pair[victim].kill()
  begin = time.monotonic()
  other = pair[1 - victim]
  status = other.wait(SECONDS)
  found = {"seconds": time.monotonic() - begin, "status": status}
  said = peer_log(workdir, 1 - victim).read_text().splitlines()
  errors = [line for line in said if line.startswith("error:")]
  fatal = [line for line in said if "Either the leader task" in line]
  found["words"] = (errors or fatal or said)[-1]
  for i, process in enumerate(start_two(words, workdir, **more)):
    finish(process, peer_log(workdir, i))
  return found
