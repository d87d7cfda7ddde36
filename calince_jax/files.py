"""Writes output files: whole, or not at all.

A command may be killed at any moment. A file under its final name then has
either its old content or the new one, never a part of it. Paths are local, or
Google Cloud Storage (gs://) where a function says so.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

PARTIAL = ".partial"  # the suffix of what is being written


def write_atomic(path: str | os.PathLike, content: str | bytes) -> None:
  """Writes a small file; text is UTF-8 with line ends as they are.

  Args:
    path: local or gs://; its folder exists.
    content: of the whole file.

  Raises:
    OSError: it cannot be written; the file is as it was.
  """
  data = content.encode("utf-8") if isinstance(content, str) else content
  path = epath.Path(path)
  if in_bucket(path):  # a bucket replaces objects atomically
    path.write_bytes(data)
    return
  with atomic_file(path) as partial:
    partial.write_bytes(data)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
  """Gives a path to write to; at the end of the block it becomes `path`.

  The content is on the disk (fsync) before it gets its name. If the block
  raises, what was written is deleted and `path` is left as it was.

  Args:
    path: local.
  """
  path = Path(path)
  partial = path.with_name(path.name + PARTIAL)
  try:
    yield partial
    with partial.open("rb") as file:
      os.fsync(file.fileno())
  except BaseException:
    partial.unlink(missing_ok=True)
    raise
  os.replace(partial, path)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
  """Gives an empty folder to fill; at the end of the block it becomes `path`.

  If the block raises, the folder is deleted.

  Args:
    path: local; there is nothing of this name.
  """
  path = Path(path)
  partial = path.with_name(path.name + PARTIAL)
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  partial.rename(path)


class LineFile:
  """A UTF-8 text file to which whole lines are appended, local or gs://."""

  def __init__(self, path: epath.Path, is_valid: Callable[[str], bool] = bool):
    """Opens the file, or makes it, and drops the lines that are not valid.

    A last line without its end was being written when the process was killed;
    it is dropped.

    Args:
      path: of the file; its folder is made if it does not exist.
      is_valid: tells of a line, without its end, whether it stays; default:
        the lines that are not empty.
    """
    self._path = path
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [line for line in read_lines(path) if is_valid(line)]
    content = b"".join(map(_as_bytes, lines))
    write_atomic(path, content)
    # Objects in a bucket cannot be appended to.
    self._content = content if in_bucket(path) else None

  def append(self, line: str) -> None:
    """Writes one line; characters that UTF-8 lacks are written as escapes."""
    if self._content is None:
      with self._path.open("ab") as file:
        file.write(_as_bytes(line))
    else:
      self._content += _as_bytes(line)
      self._path.write_bytes(self._content)


def _as_bytes(line: str) -> bytes:
  return (line + "\n").encode("utf-8", "backslashreplace")


def read_lines(path: epath.Path) -> list[str]:
  """Returns the whole lines of a file; [] where there is no file."""
  if not path.exists():
    return []
  return path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]


def in_bucket(path: str | os.PathLike) -> bool:
  """Returns whether the path is one of an object store (gs://)."""
  return "://" in str(path)
