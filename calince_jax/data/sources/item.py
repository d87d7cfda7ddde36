"""What a source lists: clips, their captions, and the bytes they are read from.

A clip says what is wanted; nothing has been opened yet. All of it is plain
data: `Media` crosses into a child process as JSON.
"""

import dataclasses
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # decoding processes import little
  from calince_jax.data.problems import Problem

UNKNOWN = -1  # `matched` of a stored caption whose truth is not known


@dataclasses.dataclass(frozen=True)
class Caption:
  """One text of a clip.

  Attributes:
    text: not blank.
    pair_index: running number of the usable captions, in the source's order.
    matched: 1, 0, or None where the truth is not known.
  """

  text: str
  pair_index: int
  matched: int | None


@dataclasses.dataclass(frozen=True)
class Media:
  """Bytes that a decoding process can open.

  Attributes:
    path: absolute, of a local file.
    offset, size: the part of the file that holds the video, in bytes, such as
      a member of an uncompressed tar; None for the whole file.
  """

  path: str
  offset: int | None = None
  size: int | None = None

  def __post_init__(self):
    part = (self.offset, self.size)
    if part != (None, None) and not (
      all(isinstance(n, int) for n in part) and min(part) >= 0
    ):
      raise ValueError(f"offset and size {part} must both be >= 0, or None")


@dataclasses.dataclass(frozen=True)
class Clip:
  """An item: a video, or its part from `start` to `end`, with captions.

  Attributes:
    id: unique in the source.
    video: as the source names it, for messages.
    media: what holds the video.
    start, end: seconds; None is the video's beginning and its end.
    label, split, group: see sources/manifest.py.
    captions: at least one.
    line: of its first row in the source, counted from 1.
  """

  id: str
  video: str
  media: Media
  start: float | None
  end: float | None
  label: str
  split: str
  group: str
  captions: tuple[Caption, ...]
  line: int


class Source(Protocol):
  """What prepare needs of a list of clips."""

  def digest(self) -> str:
    """Returns the SHA-256, in hex, of what defines the list.

    Raises:
      UserError: it cannot be read.
    """

  def scan(self) -> "tuple[list[Clip], list[Problem]]":
    """Returns the usable clips, in order, and what cannot be used.

    Raises:
      UserError: the source as a whole cannot be read.
    """
