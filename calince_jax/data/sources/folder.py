"""A folder of NAME.mp4 with NAME.txt or NAME.json beside each."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from calince_jax.data.problems import Problem
from calince_jax.data.sources.find import VIDEO_SUFFIXES, Finder
from calince_jax.data.sources.item import Clip
from calince_jax.data.sources.manifest import clips_of_rows
from calince_jax.data.sources.sidecar import TEXT_SUFFIXES, rows_of
from calince_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Folder:
  """The videos below a folder, in the order of their names.

  A video in a folder train, val or test right below is of that split, unless
  its .json file says another. A video without a text beside it is a problem.
  """

  path: pathlib.Path

  def digest(self) -> str:
    """Returns the SHA-256 of the names and of the texts."""
    content = [[video, row] for video, row in self._texts()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

  def scan(self) -> tuple[list[Clip], list[Problem]]:
    """Lists the videos, and reads the texts."""
    rows = (row for _, row in self._texts())
    find = Finder(self.path, allow_outside_root=False)
    return clips_of_rows(self.path, enumerate(rows, 1), find)

  def _texts(self) -> Iterator[tuple[str, dict[str, Any] | str]]:
    count = 0
    for folder, folders, files in os.walk(self.path):
      folders.sort()
      for name in sorted(files):
        if not name.lower().endswith(VIDEO_SUFFIXES):
          continue
        count += 1
        file = pathlib.Path(folder, name)
        video = str(file.relative_to(self.path))
        sidecars = {
          suffix: file.with_suffix(suffix).read_bytes()
          for suffix in TEXT_SUFFIXES
          if file.with_suffix(suffix).is_file()
        }
        top = pathlib.Path(video).parts[0]
        split = {"split": top} if top in ("train", "val", "test") else {}
        for row in rows_of(video, sidecars):
          yield video, row if isinstance(row, str) else split | row
    if not count:
      raise UserError(
        f"{self.path} holds no videos ({', '.join(VIDEO_SUFFIXES)})"
      )
