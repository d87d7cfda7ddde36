"""Several processes prepare one data set: each writes its part of the shards.

`--shards=K/N` is the part K, K+N, K+2N ... of the plan. Two parts that share a
shard are never at work at the same time, so that each shard has one writer. The
lock of a part lasts as long as its process; the lock of the whole folder is
held only while the work is begun, and while the parts are joined.
"""

import contextlib
import dataclasses
import math
import pathlib
import re
import shutil
from collections.abc import Iterator

from calince_jax.errors import UserError
from calince_jax.runtime import folder_lock

WORK_FOLDER = ".prepare"  # in the data set's folder, until it is finished
MOST_PARTS = 100_000


@dataclasses.dataclass(frozen=True)
class Part:
  """The shards k, k + n, k + 2n ... of a plan; 0/1 is all of them."""

  k: int
  n: int

  def __str__(self) -> str:
    return f"{self.k}/{self.n}"

  @property
  def numbers(self) -> slice:
    """Of its shards in the plan."""
    return slice(self.k, None, self.n)

  def overlaps(self, other: "Part") -> bool:
    """Whether there is a number that both parts could hold."""
    return (self.k - other.k) % math.gcd(self.n, other.n) == 0


ALL = Part(0, 1)


def parse_part(text: str) -> Part:
  """Reads K/N; UserError where it is none."""
  match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
  if match:
    part = Part(*map(int, match.groups()))
    if part.k < part.n <= MOST_PARTS:
      return part
  raise UserError(
    f"--shards={text[:40]} must be K/N with 0 <= K < N <= {MOST_PARTS}: K"
    " numbers the processes from 0, and N is their number"
  )


@contextlib.contextmanager
def claim(out: pathlib.Path, part: Part) -> Iterator[None]:
  """Makes the folder, and claims a part for the length of the block.

  Raises:
    UserError: a process writes some of the same shards, which is named, or
      the folder holds something else.
  """
  work = out / WORK_FOLDER
  if out.exists() and not out.is_dir():
    raise UserError(f"{out} is not a folder; choose another --out")
  ours = work.exists() or (out / "dataset.json").exists()
  if out.exists() and not ours and any(out.iterdir()):
    raise UserError(
      f"{out} is neither empty nor a prepared data set; choose another --out"
    )
  mine = _folder(work, part)
  mine.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    with alone(out):
      for other in _parts(work):
        if other != part and other.overlaps(part):
          folder_lock.check_free(_folder(work, other), _name(other))
      held = folder_lock.held(mine, _name(part), folder_lock.end_process)
      stack.enter_context(held)
    yield


@contextlib.contextmanager
def alone(out: pathlib.Path) -> Iterator[None]:
  """Holds the whole folder for the length of the block; waits for it."""
  work = out / WORK_FOLDER
  with folder_lock.waited_for(work, "another prepare", folder_lock.end_process):
    yield


def others_at_work(out: pathlib.Path, part: Part) -> bool:
  """Whether other parts of the same data set are claimed."""
  work = out / WORK_FOLDER
  try:
    for other in _parts(work):
      if other != part:
        folder_lock.check_free(_folder(work, other), _name(other))
  except folder_lock.FolderHeld:
    return True
  return False


def forget(out: pathlib.Path) -> None:
  """Removes the folder of the work, which is done."""
  shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)


def _folder(work: pathlib.Path, part: Part) -> pathlib.Path:
  return work / f"part-{part.k}-of-{part.n}"


def _parts(work: pathlib.Path) -> list[Part]:
  """The parts that were ever claimed."""
  found = []
  for folder in sorted(work.glob("part-*-of-*")):
    match = re.fullmatch(r"part-([0-9]{1,6})-of-([0-9]{1,6})", folder.name)
    if match and int(match[2]):
      found.append(Part(int(match[1]), int(match[2])))
  return found


def _name(part: Part) -> str:
  which = "" if part == ALL else f" of shards {part}"
  return f"another prepare{which}"
