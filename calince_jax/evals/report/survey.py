"""What is in a prepared data set, for its card: one pass over the heads.

Frames are read of the clips that are shown alone. What grows with the data set
is a few numbers for each clip and each caption.
"""

import array
import collections
import csv
import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np

from calince_jax.data.problems import CorruptRecord
from calince_jax.data.records import caption_lengths
from calince_jax.data.records.reader import ClipReader, read_info
from calince_jax.data.records.schema import DatasetInfo
from calince_jax.data.records.shard_reader import read_lengths
from calince_jax.errors import UserError


@dataclasses.dataclass
class Survey:
  """N clips and P captions, over all splits.

  Attributes:
    info: of the data set.
    num_bytes: of the shards of each split.
    clip_split: int16 [N], number of the split in `info.splits`.
    clip_index: int64 [N], number of the clip in its split.
    duration, frames: float32 and int32 [N], seconds and stored frames.
    content: uint64 [N], equal for clips with the same frames.
    sizes: clips of each width and height.
    labels: clips of each label that is not empty.
    caption: uint64 [P], equal for captions that are the same but for letter
      case and spaces.
    caption_clip: int64 [P], which clip has it.
    words: int32 [P].
    tokens: {split: captions of 0, 1, 2 ... tokens}; {} of an older data set.
    corrupt: records that cannot be read.
    reasons: what could not be used by prepare, and how often.
  """

  info: DatasetInfo
  num_bytes: dict[str, int]
  clip_split: np.ndarray
  clip_index: np.ndarray
  duration: np.ndarray
  frames: np.ndarray
  content: np.ndarray
  sizes: collections.Counter
  labels: collections.Counter
  caption: np.ndarray
  caption_clip: np.ndarray
  words: np.ndarray
  tokens: dict[str, list[int]]
  corrupt: int
  reasons: collections.Counter


def survey(directory: str | os.PathLike) -> Survey:
  """Reads the heads of all clips.

  Raises:
    UserError: not a prepared data set, or a file of it is damaged.
  """
  info = read_info(directory)
  splits, indices = array.array("h"), array.array("q")
  durations, frames = array.array("f"), array.array("i")
  contents, captions = array.array("Q"), array.array("Q")
  owners, words = array.array("q"), array.array("i")
  sizes, labels, corrupt = collections.Counter(), collections.Counter(), 0
  for part, split in enumerate(info.splits):
    reader = ClipReader(directory, split)
    for index in range(len(reader)):
      try:
        record, checksums = reader.describe(index)
      except CorruptRecord:
        corrupt += 1
        continue
      number = len(splits)
      splits.append(part)
      indices.append(index)
      durations.append(record["duration"])
      frames.append(len(checksums))
      contents.append(_hash(checksums.tobytes()))
      sizes[record["width"], record["height"]] += 1
      labels[record["label"]] += bool(record["label"])
      for text in record["texts"]:
        captions.append(_hash(" ".join(text.lower().split()).encode()))
        owners.append(number)
        words.append(len(text.split()))
  if not splits:
    raise UserError(f"{directory} has no clip that can be read")
  return Survey(
    info=info,
    num_bytes={
      split: read_lengths(directory, split)[1] for split in info.splits
    },
    clip_split=np.array(splits, np.int16),
    clip_index=np.array(indices, np.int64),
    duration=np.array(durations, np.float32),
    frames=np.array(frames, np.int32),
    content=np.array(contents, np.uint64),
    sizes=sizes,
    labels=+labels,
    caption=np.array(captions, np.uint64),
    caption_clip=np.array(owners, np.int64),
    words=np.array(words, np.int32),
    tokens={
      split: counts
      for split in info.splits
      if (counts := caption_lengths.read_counts(directory, split)) is not None
    },
    corrupt=corrupt,
    reasons=_reasons(Path(directory) / "ledger.csv"),
  )


def groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of each value that occurs more than once the first place, and how often.

  Args:
    keys: uint64 [N].

  Returns:
    int64 [G] twice, the most frequent ones first.
  """
  _, first, counts = np.unique(keys, return_index=True, return_counts=True)
  order = np.lexsort((first, -counts))
  order = order[counts[order] > 1]
  return first[order], counts[order]


def _hash(data: bytes) -> int:
  digest = hashlib.blake2b(data, digest_size=8).digest()
  return int.from_bytes(digest, "little")


def _reasons(path: Path) -> collections.Counter:
  """How often each kind of problem stands in a ledger, which may be gone."""
  try:
    with open(path, newline="", encoding="utf-8") as file:
      rows = csv.DictReader(file)
      return collections.Counter(row["what"] for row in rows)
  except FileNotFoundError:
    return collections.Counter()
  except (OSError, ValueError, KeyError, csv.Error) as error:
    raise UserError(
      f"{path} cannot be read ({error}); run prepare again"
    ) from None
