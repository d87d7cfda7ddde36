"""The shards of a split: how many records each holds, and access to one.

Damage to a file, by its disk or on its way, is detected here. Riegeli, the
format below ArrayRecord, keeps a 64-bit hash of each chunk and of each header,
and checks it at every read; a record is a chunk of its own. So a record is the
bytes that were written, or it is an error.

The lengths are read as plain JSON: TFDS would import the classes that are named
in features.json, and the folder may come from anybody.
"""

import bisect
import itertools
import json
import os
import pathlib
import threading
from collections.abc import Sequence

from array_record.python import array_record_module

from calince_jax.errors import UserError

_UNREADABLE = (
  OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError,
)  # fmt: skip


class BadShard(Exception):
  """Why a record, or a whole shard, cannot be read."""


def read_lengths(
  directory: str | os.PathLike, split: str
) -> tuple[list[int], int]:
  """Reads from dataset_info.json how a split was written.

  Args:
    directory: a prepared data set.
    split: one of its splits.

  Returns:
    The number of records of each shard, in order, and the bytes of all.

  Raises:
    UserError: it cannot be read, or lacks the split.
  """
  path = pathlib.Path(directory) / "dataset_info.json"
  try:
    splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
    (one,) = [entry for entry in splits if entry["name"] == split]
    # Protocol buffers write a 64-bit number as a string.
    lengths = [int(length) for length in one["shardLengths"]]
    num_bytes = int(one["numBytes"])
    if min(lengths) < 0:
      raise ValueError(f"a shard of {min(lengths)} records")
  except _UNREADABLE as error:
    raise UserError(
      f"{path} does not say what the shards of split {split!r} hold"
      f" ({error!r}); copy the folder again, or run prepare again"
    ) from None
  return lengths, num_bytes


class ShardFiles:
  """Random access to the records of shards; safe to call from threads."""

  def __init__(
    self, paths: Sequence[pathlib.Path], lengths: Sequence[int], num_bytes: int
  ):
    """Checks that the files exist, and are whole.

    Where their sizes add up, none is opened before it is read.

    Args:
      paths: of the shards.
      lengths: how many records each holds; an empty one need not exist.
      num_bytes: of all files together, when they were written.

    Raises:
      UserError: a file is missing, cut off, or holds another number of
        records.
    """
    held = [
      (os.fspath(path), length)
      for path, length in zip(paths, lengths, strict=True)
      if length
    ]
    self._paths = [path for path, _ in held]
    self._lengths = [length for _, length in held]
    self._ends = list(itertools.accumulate(self._lengths))
    self._readers: list = [None] * len(held)
    self._lock = threading.Lock()
    missing = [path for path in self._paths if not os.path.exists(path)]
    if missing:
      raise UserError(
        f"{missing[0]} is missing ({len(missing)} of {len(held)} shards); "
        "copy the whole folder, or run prepare again"
      )
    if num_bytes != sum(path.stat().st_size for path in paths if path.exists()):
      self._check_all()

  def _check_all(self) -> None:
    for shard, path in enumerate(self._paths):
      try:
        self._reader(shard)
      except BadShard as error:
        raise UserError(
          f"{path}, of {os.path.getsize(path)} bytes, is not as it was written:"
          f" {error}; copy the whole folder again, or run prepare again"
        ) from None

  def __len__(self) -> int:
    """Returns the number of records."""
    return self._ends[-1] if self._ends else 0

  def read(self, index: int) -> bytes:
    """Returns record `index` of [0, len(self)), as it was written.

    Raises:
      BadShard: the record, or its whole shard, is corrupt.
    """
    shard = self._shard(index)
    reader = self._reader(shard)
    place = index - self._ends[shard] + self._lengths[shard]
    try:
      # A failed read does not spoil those that follow.
      return reader.read([place])[0]
    except RuntimeError as error:
      raise BadShard(_short(error)) from None

  def path(self, index: int) -> str:
    """Returns the file that holds record `index`."""
    return self._paths[self._shard(index)]

  def _shard(self, index):
    return bisect.bisect_right(self._ends, index)

  def _reader(self, shard):
    # Not cached where it is bad: a file that is repaired is read again.
    if self._readers[shard] is None:
      with self._lock:
        if self._readers[shard] is None:
          self._readers[shard] = _open(self._paths[shard], self._lengths[shard])
    return self._readers[shard]


def _open(path, length):
  name = os.path.basename(path)
  try:
    reader = array_record_module.ArrayRecordReader(
      path, options="readahead_buffer_size:0", file_reader_buffer_size=2**15
    )
    count = reader.num_records()
    if not reader.ok():
      reader.read([0])  # says what is wrong, but for a file of 64 KiB
      raise BadShard(f"its shard {name} has no index: it is cut off")
  except RuntimeError as error:
    raise BadShard(f"its shard {name} cannot be opened: {_short(error)}") from (
      None
    )
  if count != length:
    raise BadShard(f"its shard {name} holds {count} records, not {length}")
  return reader


def _short(error):
  """The first statement of one of ArrayRecord's messages, in one line."""
  return " ".join(str(error).partition(";")[0].split())[:200]
