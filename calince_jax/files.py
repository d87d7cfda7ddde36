"""Text files that a killed run leaves whole, on a disk or in a bucket."""

import os
from collections.abc import Callable

from etils import epath


class LineFile:
  """A file of lines, each appended whole or not at all."""

  def __init__(self, path: epath.Path, keep: Callable[[str], bool] = bool):
    """Opens or makes it, and drops what `keep` does not want.

    A last line without its end was being written when a run was killed; it is
    dropped.

    Args:
      path: of the file; its folder is made if it is not there.
      keep: of a line without its end; default: those that are not empty.
    """
    self._path = path
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(line + "\n" for line in read_lines(path) if keep(line))
    write_whole(path, text)
    # A bucket's files cannot be appended to.
    self._whole = text if _in_bucket(path) else None

  def append(self, line: str) -> None:
    """Writes one line."""
    if self._whole is None:
      with self._path.open("a") as file:
        file.write(line + "\n")
    else:
      self._whole += line + "\n"
      self._path.write_text(self._whole)


def read_lines(path: epath.Path) -> list[str]:
  """The whole lines of a file, none where there is no file."""
  if not path.exists():
    return []
  return path.read_text().split("\n")[:-1]


def write_whole(path: epath.Path, content: str | bytes) -> None:
  """Writes a small file so that at any moment it is the old or the new one."""
  data = content.encode() if isinstance(content, str) else content
  if _in_bucket(path):  # which does so by itself
    path.write_bytes(data)
    return
  partial = path.parent / f"{path.name}.partial"
  partial.write_bytes(data)
  with partial.open("rb") as file:
    os.fsync(file.fileno())
  os.replace(partial, path)


def _in_bucket(path):
  return "://" in str(path)
