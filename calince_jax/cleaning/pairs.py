"""The pairs to examine: of a manifest, or of a prepared data set."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from calince_jax.cli import one_line
from calince_jax.data.records.reader import ClipReader, read_info
from calince_jax.data.sources.item import UNKNOWN, Clip, Media, Source
from calince_jax.errors import UserError, check_choice


@dataclasses.dataclass(frozen=True)
class Pairs:
  """P pairs of N clips, in the source's order.

  Attributes:
    clips: N of them; of a prepared data set, without captions, and media is
      its folder.
    clip: int64 [P], the number of each pair's clip.
    texts: P captions.
    matched: int8 [P]: 1, 0, or -1 where the truth is not known.
  """

  clips: Sequence[Clip]
  clip: np.ndarray
  texts: Sequence[str]
  matched: np.ndarray

  def __len__(self) -> int:
    """Returns the number of pairs."""
    return len(self.texts)

  def groups(self) -> list[str]:
    """The group of each pair's clip."""
    return [self.clips[i].group for i in self.clip]


def of_source(source: Source, split: str) -> Pairs:
  """The pairs of one split of a manifest.

  Args:
    source: of clips.
    split: its name, or "all".

  Raises:
    UserError: the source cannot be read, or has no usable clip in this split.
  """
  clips, problems = source.scan()
  known = sorted({clip.split for clip in clips})
  if clips and split != "all":
    check_choice("--split", split, [*known, "all"])
  kept = [clip for clip in clips if split in ("all", clip.split)]
  if not kept:
    why = f"; {problems[0].why}" if problems else ""
    raise UserError(f"there is no usable clip{why}")
  if problems:
    print(
      f"{len(problems):,} rows or clips cannot be used and are left out; the"
      f" first: {problems[0].what}: {one_line(problems[0].why)}",
      flush=True,
    )
  numbered = sorted(
    (caption.pair_index, i, caption)
    for i, clip in enumerate(kept)
    for caption in clip.captions
  )
  return Pairs(
    clips=kept,
    clip=np.array([i for _, i, _ in numbered], np.int64),
    texts=[caption.text for _, _, caption in numbered],
    matched=np.array(
      [
        UNKNOWN if caption.matched is None else caption.matched
        for _, _, caption in numbered
      ],
      np.int8,
    ),
  )


def of_data_set(directory: str, split: str) -> Pairs:
  """The pairs of one split of a prepared data set.

  Raises:
    UserError: not a prepared data set, or a split that it does not have.
  """
  check_choice("--split", split, sorted(read_info(directory).splits))
  reader = ClipReader(directory, split)
  clips, clip, texts, matched = [], [], [], []
  for i in range(len(reader)):
    (record,) = reader.read([i])
    clips.append(
      Clip(
        id=record["id"],
        video=record["id"],
        media=Media(directory),
        start=None,
        end=None,
        label=record["label"],
        split=split,
        group=record["group"],
        captions=(),
        line=i,
      )
    )
    clip += [i] * len(record["texts"])
    texts += record["texts"]
    matched += record["matched"]
  return Pairs(
    clips=clips,
    clip=np.array(clip, np.int64),
    texts=texts,
    matched=np.array(matched, np.int8),
  )
