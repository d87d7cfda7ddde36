"""The pairs to examine: of a manifest, or of a prepared data set."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from calince_jax.data.records.reader import ClipReader, read_info
from calince_jax.data.sources.item import UNKNOWN, Media, Source
from calince_jax.errors import UserError, check_choice


@dataclasses.dataclass(frozen=True)
class ClipFacts:
  """What is known of a clip besides its captions.

  Attributes:
    id: unique in the source.
    video: as the source names it; of a prepared data set, the id.
    split, label, group: "" where the source says nothing.
    media, start, end: what to open for a picture; None of a prepared data set.
    record: its number in the split of a prepared data set, or None.
  """

  id: str
  video: str
  split: str
  label: str
  group: str
  media: Media | None = None
  start: float | None = None
  end: float | None = None
  record: int | None = None


@dataclasses.dataclass(frozen=True)
class Pairs:
  """P pairs of N clips, in the source's order.

  Attributes:
    clips: N of them.
    clip: int64 [P], the number of each pair's clip.
    texts: P captions.
    matched: int8 [P]: 1, 0, or -1 where the truth is not known.
  """

  clips: Sequence[ClipFacts]
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
  numbered = sorted(
    (caption.pair_index, i, caption)
    for i, clip in enumerate(kept)
    for caption in clip.captions
  )
  return Pairs(
    clips=[
      ClipFacts(
        id=clip.id,
        video=clip.video,
        split=clip.split,
        label=clip.label,
        group=clip.group,
        media=clip.media,
        start=clip.start,
        end=clip.end,
      )
      for clip in kept
    ],
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
      ClipFacts(
        id=record["id"],
        video=record["id"],
        split=split,
        label=record["label"],
        group=record["group"],
        record=i,
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
