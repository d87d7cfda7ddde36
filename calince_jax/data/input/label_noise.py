"""Exchanges captions among clips: known mismatched pairs, for studies.

The noise is drawn when a split is opened, from its captions alone: another
share, kind or seed needs no prepare, and decodes nothing.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from calince_jax.data.input import mismatch_kinds
from calince_jax.data.problems import CorruptRecord
from calince_jax.data.sources.item import UNKNOWN
from calince_jax.errors import UserError

if TYPE_CHECKING:  # slow to import
  from calince_jax.data.records.reader import ClipReader, Frames


def mismatched(
  reader: "ClipReader", share: float, seed: int, kind: str = "uniform"
) -> "ClipReader | MismatchedReader":
  """The reader itself where `share` is 0, else a MismatchedReader of it."""
  return MismatchedReader(reader, share, seed, kind) if share else reader


class MismatchedReader:
  """A ClipReader some of whose clips carry wrong texts.

  round(share N) clips get them, of the kind that is asked for (see
  mismatch_kinds.py); their `matched` is 0. All others are as they were, except
  that an unknown `matched` (-1) becomes 1: the protocol takes the given
  captions as right. The pair indices stay those of the video's own record: of
  the texts that it gets, as many are used as it had, again from the first where
  they are fewer.

  A clip that cannot be read keeps its part in the exchange, as a group of its
  own: which clips are chosen does not depend on it, whose caption they carry
  may. The one that gets its texts counts as corrupt too.
  """

  def __init__(
    self, reader: "ClipReader", share: float, seed: int, kind: str = "uniform"
  ):
    """Reads all records once, and keeps the texts that change place.

    Args:
      reader: of a split.
      share: of the clips, in (0, 1).
      seed: of the choice, at least 0.
      kind: one of mismatch_kinds.KINDS.

    Raises:
      UserError: `share` or `seed` is out of range, there are too few clips or
        too few different texts, or the kind needs groups that they do not have.
    """
    count = round(share * len(reader))
    if not 0 <= share < 1 or seed < 0:
      raise UserError(
        f"a share {share} of mismatched clips with seed {seed}: the share must"
        " be in [0, 1) and the seed at least 0"
      )
    if count < 2:
      raise UserError(
        f"a share {share} of {len(reader)} clips is {count} clip(s), too few to"
        " exchange captions; give a larger share (0 for none) or more clips"
      )
    self._reader = reader
    ids, texts, groups = [], [], []
    corrupt: dict[int, CorruptRecord] = {}
    for index in range(len(reader)):
      try:
        (record,) = reader.read([index])
      except CorruptRecord as error:
        corrupt[index] = error
        record = {"id": f"\0{index}", "texts": [], "group": ""}
      ids.append(record["id"])
      texts.append(record["texts"])
      groups.append(record["group"])
    clips = mismatch_kinds.Clips(ids, texts, groups)
    wrong = mismatch_kinds.draw(kind, clips, count, seed)
    self._texts = {i: one.texts for i, one in wrong.items()}
    self._corrupt = {
      i: corrupt[one.donor] for i, one in wrong.items() if one.donor in corrupt
    }

  @property
  def directory(self) -> str:
    """Of the reader."""
    return self._reader.directory

  @property
  def split(self) -> str:
    """Of the reader."""
    return self._reader.split

  def __len__(self) -> int:
    """Returns the number of clips."""
    return len(self._reader)

  def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Reads clips, see ClipReader.read.

    Raises:
      CorruptRecord: a record, or the one whose texts it carries, could not be
        read.
    """
    records = self._reader.read(indices)
    return [
      self._changed(int(index), record)
      for index, record in zip(indices, records, strict=True)
    ]

  def clip(self, index: int) -> "tuple[dict[str, Any], Frames]":
    """Opens a clip, see ClipReader.clip.

    Raises:
      CorruptRecord: as `read`.
    """
    record, frames = self._reader.clip(index)
    return self._changed(index, record), frames

  def _changed(self, index, record):
    pairs = len(record["pair_indices"])
    if index in self._corrupt:
      donor = self._corrupt[index]
      raise CorruptRecord(
        donor.directory,
        donor.split,
        index,
        f"it carries the texts of record {donor.record}, which is corrupt: "
        f"{donor.reason}",
      )
    if index in self._texts:
      texts = itertools.cycle(self._texts[index])
      texts, matched = list(itertools.islice(texts, pairs)), [0] * pairs
    else:
      texts = record["texts"]
      matched = [1 if m == UNKNOWN else m for m in record["matched"]]
    return record | {"texts": texts, "matched": matched}
