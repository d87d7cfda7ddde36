"""Checksums of the files of a folder: what is damaged is found and named.

FOLDER/checksums.json lists size and SHA-256 of each file. Disks flip bits, and
copies stop half way; numbers of a model look like numbers all the same.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from calince_jax.errors import UserError
from calince_jax.files import in_bucket, read_json, write_atomic

FILE = "checksums.json"
# Orbax writes them after the checksums, or anew when it likes.
NOT_LISTED = (FILE, "_CHECKPOINT_METADATA", "commit_success.txt")
BLOCK = 1 << 22  # bytes that are read at a time
THREADS = 8  # hashlib lets others run meanwhile
SHOWN = 5  # files in a message


def write(folder: epath.Path) -> None:
  """Writes the list of the files that are there now."""
  names = sorted(_names(folder))
  with ThreadPoolExecutor(THREADS) as pool:
    digests = pool.map(lambda name: _digest(folder / name), names)
    listed = {name: list(one) for name, one in zip(names, digests, strict=True)}
  write_atomic(folder / FILE, json.dumps({"sha256": listed}, indent=0) + "\n")


def exist(folder: epath.Path) -> bool:
  """Whether the folder has the list."""
  return (folder / FILE).exists()


def damage(folder: epath.Path, part: int = 0, parts: int = 1) -> list[str]:
  """What is wrong with the files of a folder, [] where nothing is.

  A folder without the list is not looked at. Files that are not on it are no
  damage.

  Args:
    folder: local or gs://.
    part, parts: of several processes, the number of this one and how many
      there are: each reads its share of the files.
  """
  if not exist(folder):
    return []
  try:
    listed = read_json(folder / FILE)["sha256"]
    wanted = {
      str(name): (int(size), str(digest))
      for name, (size, digest) in listed.items()
    }
  except UserError as error:
    return [str(error)]
  except (KeyError, TypeError, ValueError, AttributeError):
    return [f"{FILE} is damaged"]
  mine = sorted(wanted)[part::parts]
  with ThreadPoolExecutor(THREADS) as pool:
    found = pool.map(lambda name: _compare(folder, name, wanted[name]), mine)
    return [words for words in found if words]


def describe(found: list[str]) -> str:
  """The first few of `damage`, for a message."""
  more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
  return ", ".join(found[:SHOWN]) + more


def _compare(folder, name, wanted):
  path = folder / name
  if ".." in name.split("/") or name.startswith("/"):
    return f"{FILE} names {name}"
  try:
    if not path.exists():
      return f"{name} is missing"
    if not in_bucket(path) and not path.is_file():
      return f"{name} is not a plain file"
    size = path.stat().length
    if size != wanted[0]:
      return f"{name} has {size:,} bytes, not {wanted[0]:,}"
    if _digest(path) != wanted:
      return f"{name} has other bytes than were saved"
  except OSError as error:
    return f"{name} cannot be read ({error.strerror or error})"
  return ""


def _names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
  for path in folder.iterdir():
    if path.is_dir():
      yield from _names(path, f"{prefix}{path.name}/")
    elif path.name not in NOT_LISTED:
      yield prefix + path.name


def _digest(path: epath.Path) -> tuple[int, str]:
  digest, size = hashlib.sha256(), 0
  with path.open("rb") as file:
    while block := file.read(BLOCK):
      digest.update(block)
      size += len(block)
  return size, digest.hexdigest()
