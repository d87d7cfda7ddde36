"""Where each frame lies in its shard, so that it is read without the others.

Beside the records of a shard lies a small file of heads (ArrayRecord as well,
one for each clip, in the same order): the record without its frames, and the
place and CRC-32 of each. A frame is then a part of the shard's bytes, and is
right or an error, as the whole record is.

Riegeli, the format below ArrayRecord, stores an uncompressed record as it is,
but for a header of 24 bytes at each multiple of 64 KiB of the file
(https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md).
What is written here was read back at the places that it gives.
"""

import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

BLOCK, HEADER = 2**16, 24  # bytes
PREFIX = 512  # bytes of a record that are looked for
# Between two records: the header of a chunk, what it says of the record, and
# the header of a block.
LARGEST_GAP = 4096


def heads_path(shard: str | os.PathLike) -> pathlib.Path:
  """Returns the path of the heads of a shard."""
  shard = pathlib.Path(shard)
  return shard.with_name(f"{shard.name}.heads")


def relative_places(data: bytes, frames: Sequence[bytes]) -> np.ndarray:
  """Returns int64 [F, 3]: offset in `data`, length and CRC-32 of each frame."""
  places, at = [], 0
  for frame in frames:
    at = data.index(frame, at)
    places.append((at, len(frame), zlib.crc32(frame)))
    at += len(frame)
  return np.array(places, np.int64).reshape(-1, 3)


def absolute_places(
  shard: str | os.PathLike, records: Iterable[tuple[bytes, np.ndarray]]
) -> list[np.ndarray]:
  """Finds the records of a shard in its file, and reads every frame back.

  Args:
    shard: the file, written.
    records: of each record in order its first PREFIX bytes, and the
      `relative_places` of its frames.

  Returns:
    Of each record int64 [F, 3]: offset in the file, length, CRC-32.

  Raises:
    RuntimeError: the file is not laid out as the formats say.
  """
  found, at = [], 0
  with open(shard, "rb") as file:
    for number, (prefix, relative) in enumerate(records):
      window = read_at(file.fileno(), at, LARGEST_GAP + PREFIX)
      begin = window.find(prefix)
      if begin < 0:
        raise RuntimeError(
          f"{shard}: record {number} is not where it should be"
        )
      begin = forward(at, begin)
      places = relative.copy()
      places[:, 0] = [forward(begin, int(offset)) for offset in relative[:, 0]]
      read_frames(shard, places)
      found.append(places)
      if len(places):
        at = forward(int(places[-1, 0]), int(places[-1, 1]))
  return found


def forward(position: int, count: int) -> int:
  """Returns the file's position `count` bytes of records after `position`."""
  into_block = position % BLOCK
  body = max(into_block - HEADER, 0) + count
  blocks, rest = divmod(body, BLOCK - HEADER)
  return position - into_block + blocks * BLOCK + HEADER + rest


def read_at(file: int, position: int, count: int) -> bytes:
  """Reads `count` bytes of records, fewer at the end of the file.

  Args:
    file: descriptor.
    position: in the file.
    count: of bytes, without headers of blocks.
  """
  data = os.pread(file, forward(position, count) - position, position)
  into_block = position % BLOCK
  skip = max(HEADER - into_block, 0)  # where it begins at the end of a block
  room = BLOCK - into_block
  if len(data) <= room:
    return data[skip:] if skip else data
  parts = [data[skip:room]]
  parts += [data[i + HEADER : i + BLOCK] for i in range(room, len(data), BLOCK)]
  return b"".join(parts)


def read_frames(shard: str | os.PathLike, places: np.ndarray) -> list[bytes]:
  """Reads frames.

  Args:
    shard: the file.
    places: int64 [n, 3], see `absolute_places`.

  Raises:
    OSError: the file cannot be read.
    ValueError: a frame is not as it was written.
  """
  frames = []
  file = os.open(shard, os.O_RDONLY)
  try:
    for position, length, crc in places.tolist():
      frame = read_at(file, position, length)
      if len(frame) != length or zlib.crc32(frame) != crc:
        raise ValueError(
          f"the checksum of a frame at byte {position:,} of"
          f" {pathlib.Path(shard).name} is wrong"
        )
      frames.append(frame)
  finally:
    os.close(file)
  return frames


def with_places(
  record: Mapping[str, Any], places: np.ndarray
) -> dict[str, Any]:
  """Returns a head: a record with the places as its only "frame"."""
  content = places.astype("<i8").tobytes()
  return {**record, "frames": [content]}


def places_of(head: dict[str, Any]) -> np.ndarray:
  """Takes the places out of a decoded head: int64 [F, 3].

  Raises:
    ValueError: they are none.
  """
  (content,) = head.pop("frames")
  return np.frombuffer(content, "<i8").reshape(-1, 3)
