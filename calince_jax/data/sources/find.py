"""Finds the video files that annotations name without extension or folder."""

import os
import pathlib

from calince_jax.data.sources.item import Media
from calince_jax.data.sources.manifest import BadRow, find_file
from calince_jax.data.sources.manifest_rows import printable
from calince_jax.errors import UserError

VIDEO_SUFFIXES = (
  ".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv",
  ".wmv", ".3gp", ".ts", ".ogv", ".gif",
)  # fmt: skip


class Finder:
  """Looks up a video below a folder: as it is named, or by its stem."""

  def __init__(self, root: str | os.PathLike, allow_outside_root: bool):
    """Takes the folder; it is listed when a name is no path of a file.

    Raises:
      UserError: `root` is no folder.
    """
    self._root = os.path.realpath(root)
    self._allow_outside_root = allow_outside_root
    self._by_stem: dict[str, list[str]] | None = None
    if not os.path.isdir(self._root):
      raise UserError(f"the root of the videos, {root}, is not a folder")

  def __call__(self, video: str) -> Media:
    """Returns the media of `video`.

    Raises:
      BadRow: it is not there, or two files have its name.
    """
    try:
      return self._open(video)
    except BadRow as error:
      if error.args[0] != "no such file":
        raise
      found = self._listed().get(_stem(video), [])
      if len(found) > 1:
        raise BadRow(
          "several files",
          f"{printable(found[0])} and {printable(found[1])} both are"
          f" {printable(video)}",
          "keep one of them below --root",
        ) from None
      if not found:
        raise BadRow(
          "no such file",
          f"no video below {self._root} is named {printable(video)}",
          "check --root, or download it",
        ) from None
      return self._open(found[0])

  def _open(self, video):
    return Media(find_file(video, self._root, self._allow_outside_root))

  def _listed(self):
    if self._by_stem is None:
      self._by_stem = {}
      for folder, _, files in os.walk(self._root):
        for name in sorted(files):
          if name.lower().endswith(VIDEO_SUFFIXES):
            path = os.path.relpath(os.path.join(folder, name), self._root)
            self._by_stem.setdefault(_stem(name), []).append(path)
    return self._by_stem


def _stem(video: str) -> str:
  name = pathlib.PurePath(video).name
  return (
    name.removesuffix(pathlib.PurePath(name).suffix)
    if (name.lower().endswith(VIDEO_SUFFIXES))
    else name
  )
