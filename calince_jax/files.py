"""Writes output files: whole, or not at all.

A command may be killed at any moment. A file under its final name then has
either its old content or the new one, never a part of it. What is not a plain
file, such as a device or a pipe, is never written to or replaced. Paths are
local, or Google Cloud Storage (gs://) where a function says so.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from calince_jax.errors import UserError

PARTIAL = ".partial"  # the suffix of what is being written
LONGEST_NAME = 255 - len(PARTIAL)  # bytes; Linux allows 255
# Of a disk or a quota that is full, and of a limit on the size of a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# ------------------------------------------------------------ where to


def check_place(flag: str, path: str, *, bucket: bool = False) -> None:
  """Raises UserError unless files can be written at the path of a flag.

  Args:
    flag: its name with dashes, for the message.
    path: its value.
    bucket: whether it may be of Google Cloud Storage.
  """
  if not path.strip():
    raise UserError(f"{flag} is empty; name a folder or file")
  if "\0" in path:
    raise UserError(f"{flag} holds a NUL character")
  scheme, colon, _ = path.partition("://")
  if colon and not (bucket and scheme == "gs"):
    known = "a local path or gs://..." if bucket else "a local path"
    raise UserError(f"{flag}={path} must be {known}, not {scheme}://")


def check_new_or_plain(path: str | os.PathLike) -> None:
  """Raises UserError unless there is a plain file of that name, or nothing."""
  try:
    mode = os.stat(path).st_mode
  except FileNotFoundError:
    if os.path.islink(path):
      raise UserError(f"{path} is a link to nowhere; remove it") from None
    return
  if not stat.S_ISREG(mode):
    raise UserError(
      f"{path} is there and is not a plain file: it is not replaced; choose"
      " another name"
    )


def without_controls(text: str) -> str:
  """A text from others, for a file that a person may print to a terminal.

  Control characters but line ends and tabs are written as escapes.
  """
  return "".join(
    c if c in "\n\t" or unicodedata.category(c) != "Cc" else ascii(c)[1:-1]
    for c in text
  )


# ------------------------------------------------------------ reading


def check_plain_file(path: str | os.PathLike) -> None:
  """Raises UserError unless it is a file; a pipe or device may never end."""
  try:
    mode = os.stat(path).st_mode
  except (OSError, ValueError) as error:  # ValueError: a NUL in the name
    reason = getattr(error, "strerror", error)
    raise UserError(f"{path} cannot be read: {reason}") from None
  if not stat.S_ISREG(mode):
    kind = "a folder" if stat.S_ISDIR(mode) else "not a plain file"
    raise UserError(f"{path} cannot be read: it is {kind}")


def file_sha256(path: str | os.PathLike) -> str:
  """The SHA-256 of a local file, in hex; UserError as `check_plain_file`."""
  check_plain_file(path)
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_file(path: str | os.PathLike, *, most: int = 2**30) -> bytes:
  """The content of a file that others may have written.

  Args:
    path: local or gs://.
    most: bytes that it may have.

  Raises:
    UserError: it cannot be read, is no plain file, or is larger.
  """
  if not in_bucket(path):
    check_plain_file(path)
  try:
    size = epath.Path(path).stat().length
    if size > most:
      raise UserError(f"{path} has {size:,} bytes, more than {most:,}")
    return epath.Path(path).read_bytes()
  except OSError as error:
    reason = error.strerror or type(error).__name__
    raise UserError(f"{path} cannot be read: {reason}") from None


def read_text(path: str | os.PathLike, *, most: int = 2**30) -> str:
  """As `read_file`; UserError too where it is not UTF-8."""
  content = read_file(path, most=most)
  try:
    return content.decode("utf-8")
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise UserError(f"{path}: line {line} is not UTF-8") from None


def read_json(path: str | os.PathLike, *, most: int = 2**28) -> dict[str, Any]:
  """The object in a JSON file, as `read_text`; UserError where it is none."""
  return parse_json(read_text(path, most=most), str(path))


def parse_json(text: str, where: str) -> dict[str, Any]:
  """The object that a text says; UserError names `where` if it is none."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{where} is damaged: it is not JSON ({error})") from None
  if not isinstance(value, dict):
    raise UserError(f"{where} is damaged: it is not a JSON object")
  return value


# ------------------------------------------------------------ writing


def write_atomic(path: str | os.PathLike, content: str | bytes) -> None:
  """Writes a small file; text is UTF-8 with line ends as they are.

  Args:
    path: local or gs://; its folder exists.
    content: of the whole file; half of a surrogate pair is written as an
      escape.

  Raises:
    OSError: it cannot be written; the file is as it was.
    UserError: see `atomic_file`.
  """
  if isinstance(content, str):
    content = content.encode("utf-8", "backslashreplace")
  if in_bucket(path):  # a bucket replaces objects atomically
    epath.Path(path).write_bytes(content)
    return
  with atomic_file(path) as partial:
    partial.write_bytes(content)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
  """Gives a path to write to; at the end of the block it becomes `path`.

  The content is on the disk (fsync) before it gets its name. If the block
  raises, what was written is deleted and `path` is left as it was. A link to a
  file stays a link.

  Args:
    path: local.

  Raises:
    UserError: there is something of this name that is no plain file, or
      another process is writing it.
  """
  check_new_or_plain(path)
  path = Path(os.path.realpath(path))
  name = os.fsencode(path.name)[:LONGEST_NAME]
  partial = path.with_name(os.fsdecode(name) + PARTIAL)
  with _claimed(partial):
    try:
      yield partial
      with partial.open("rb") as file:
        os.fsync(file.fileno())
      os.replace(partial, path)
    except BaseException:
      partial.unlink(missing_ok=True)
      raise
  _sync_folder(path.parent)


@contextlib.contextmanager
def _claimed(partial: Path) -> Iterator[None]:
  """Makes an empty file that no other process writes at the same time."""
  if partial.is_dir() and not partial.is_symlink():
    raise UserError(f"{partial} is a folder; remove it")
  # Not through a link that somebody else has put there.
  flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
  try:
    descriptor = os.open(partial, flags, 0o666)
  except OSError as error:
    if error.errno not in (errno.ELOOP, errno.ENXIO):
      raise
    raise UserError(f"{partial} is not a plain file; remove it") from None
  with os.fdopen(descriptor, "wb") as file:
    try:
      if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise UserError(f"{partial} is not a plain file; remove it")
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f"another process is writing {partial.with_suffix('')}; try again"
      ) from None
    except OSError:  # a disk without locks
      pass
    file.truncate(0)
    yield


def _sync_folder(folder: Path) -> None:
  """Has the names in a folder on the disk, where the system can do that."""
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
  """Gives an empty folder to fill; at the end of the block it becomes `path`.

  Its files are on the disk before it gets its name. If the block raises, the
  folder is deleted.

  Args:
    path: local; there is nothing of this name.
  """
  path = Path(path)
  partial = path.with_name(path.name + PARTIAL)
  _remove(partial)
  partial.mkdir(parents=True)
  try:
    yield partial
    for file in partial.rglob("*"):
      if file.is_file():
        with file.open("rb") as opened:
          os.fsync(opened.fileno())
    partial.rename(path)
  except BaseException:
    _remove(partial)
    raise
  _sync_folder(path.parent)


def _remove(folder: Path) -> None:
  """Deletes a folder, and what threads still put into it meanwhile."""
  for _ in range(3):
    shutil.rmtree(folder, ignore_errors=True)
    if not os.path.lexists(folder):
      return


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
  """Returns the whole lines of a file; [] where there is no file.

  Raises:
    UserError: see `read_file`.
  """
  if not path.exists():
    return []
  return read_file(path, most=2**34).decode("utf-8", "replace").split("\n")[:-1]


def in_bucket(path: str | os.PathLike) -> bool:
  """Returns whether the path is one of an object store (gs://)."""
  return "://" in str(path)
