"""Reads a prepared data set: what it is, and its clips by number."""

import contextlib
import dataclasses
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from calince_jax.data.problems import CorruptRecord
from calince_jax.data.records import shard_reader
from calince_jax.data.records.frame_places import (
  heads_path,
  places_of,
  read_frames,
)
from calince_jax.data.records.schema import (
  FORMAT_VERSION,
  DatasetInfo,
  decode_record,
  shard_path,
)
from calince_jax.errors import UserError, check_choice
from calince_jax.files import read_json


def read_info(directory: str | os.PathLike) -> DatasetInfo:
  """Reads dataset.json.

  Raises:
    UserError: not a prepared data set, not finished, or of a newer format.
  """
  path = pathlib.Path(directory) / "dataset.json"
  try:
    if not path.exists():
      raise FileNotFoundError
    content = read_json(path)
    version = content["format_version"]
  except FileNotFoundError:
    raise UserError(
      f"{directory} is not a prepared data set (it has no dataset.json); "
      "make one, or finish an interrupted one, with "
      "python -m calince_jax.prepare --manifest=... --out=..."
    ) from None
  except KeyError:
    raise UserError(f"{path} has no format_version") from None
  if version != FORMAT_VERSION:
    raise UserError(
      f"{path} has format {version!r}, this version of calince_jax reads "
      f"format {FORMAT_VERSION}; run prepare again, or use the version that "
      "wrote it"
    )
  fields = [field.name for field in dataclasses.fields(DatasetInfo)]
  if sorted(content) != sorted(fields):
    raise UserError(f"{path} has the keys {sorted(content)}, not {fields}")
  kinds = {"splits": dict, "settings": dict, "labels": list, "num_pairs": int}
  for name, kind in kinds.items():
    if not isinstance(content[name], kind):
      raise UserError(
        f"{path}: {name} is no {kind.__name__}; copy the folder again"
      )
  return DatasetInfo(**content)


class ClipReader:
  """Random access to the records of one split; safe to call from threads."""

  def __init__(self, directory: str | os.PathLike, split: str):
    """Opens a split.

    Args:
      directory: a prepared data set.
      split: one of `read_info(directory).splits`.

    Raises:
      UserError: not a prepared data set, unknown split, or a shard is missing
        or not whole.
    """
    known = sorted(read_info(directory).splits)
    check_choice(f"the split of {directory}", split, known)
    lengths, num_bytes = shard_reader.read_lengths(directory, split)
    count = len(lengths)
    paths = [shard_path(directory, split, i, count) for i in range(count)]
    self.directory = os.fspath(directory)
    self.split = split
    self._records = shard_reader.ShardFiles(paths, lengths, num_bytes)
    self._heads = _open_heads(paths, lengths)

  def __len__(self) -> int:
    """Returns the number of clips."""
    return len(self._records)

  def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Reads clips.

    Args:
      indices: each in [0, len(self)); any order, repetitions allowed.

    Returns:
      For each index {"frames": list of JPEG bytes, "texts": list of str,
      "pair_indices": list of int, "matched": list of int (1, 0, -1 = unknown),
      "id", "label", "split", "group": str, "duration": float seconds, "width",
      "height": int}.

    Raises:
      IndexError: an index is out of range.
      CorruptRecord: a record fails its checksum or cannot be parsed.
    """
    return [self._read_one(int(index)) for index in indices]

  def clip(self, index: int) -> "tuple[dict[str, Any], Frames]":
    """Opens a clip, to read only some of its frames.

    Args:
      index: in [0, len(self)).

    Returns:
      A dict as `read` returns it, without the frames; and the frames.

    Raises:
      IndexError: the index is out of range.
      CorruptRecord: the record fails its checksum or cannot be parsed.
    """
    if self._heads is None:  # prepared before there were heads
      record = self._read_one(index)
      jpegs = record.pop("frames")
      return record, Frames(
        len(jpegs), lambda chosen: [jpegs[t] for t in chosen]
      )
    with self._checked(index):
      head = decode_record(self._heads.read(index))
      places = places_of(head)

    def read(chosen):
      with self._checked(index):
        return read_frames(self._records.path(index), places[chosen])

    return head, Frames(len(places), read)

  def describe(self, index: int) -> tuple[dict[str, Any], np.ndarray]:
    """Reads what a clip is, and no frame of it.

    Args:
      index: in [0, len(self)).

    Returns:
      A dict as `read` returns it, without the frames; and int64 [F, 2], bytes
      and CRC-32 of each frame.

    Raises:
      IndexError: the index is out of range.
      CorruptRecord: the record fails its checksum or cannot be parsed.
    """
    if self._heads is None:
      record = self._read_one(index)
      jpegs = record.pop("frames")
      sums = [(len(jpeg), zlib.crc32(jpeg)) for jpeg in jpegs]
      return record, np.array(sums, np.int64)
    with self._checked(index):
      head = decode_record(self._heads.read(index))
      return head, places_of(head)[:, 1:]

  def _read_one(self, index: int) -> dict[str, Any]:
    with self._checked(index):
      return decode_record(self._records.read(index))

  @contextlib.contextmanager
  def _checked(self, index):
    if not 0 <= index < len(self):
      raise IndexError(f"clip {index} of {len(self)}")
    try:
      yield
    except (shard_reader.BadShard, OSError, ValueError) as error:
      raise CorruptRecord(
        self.directory, self.split, index, str(error)
      ) from error


@dataclasses.dataclass(frozen=True)
class Frames:
  """The JPEG files of a clip; indexed with numbers [n], it reads them.

  Attributes:
    count: F.
    read: the function from numbers, int64 [n], to JPEG files.
  """

  count: int
  read: Callable[[np.ndarray], list[bytes]]

  def __len__(self) -> int:
    """Returns F."""
    return self.count

  def __getitem__(self, chosen: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns an object array [n] of JPEG files.

    Raises:
      CorruptRecord: one of them fails its checksum.
    """
    files = np.empty(len(chosen), object)
    files[:] = self.read(np.asarray(chosen, np.int64))
    return files


def _open_heads(
  paths: Sequence[pathlib.Path], lengths: Sequence[int]
) -> shard_reader.ShardFiles | None:
  """Opens the heads of the shards; None where there are none at all."""
  heads = [heads_path(path) for path in paths]
  sizes = [path.stat().st_size for path in heads if path.exists()]
  if not sizes:
    return None
  return shard_reader.ShardFiles(heads, lengths, sum(sizes))
