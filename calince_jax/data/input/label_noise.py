"""Exchanges captions among clips: known mismatched pairs, for studies."""

import collections
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from calince_jax.data.problems import CorruptRecord
from calince_jax.data.sources.item import UNKNOWN
from calince_jax.errors import UserError

if TYPE_CHECKING:  # slow to import, and the synthetic corpus does not need it
  from calince_jax.data.records.reader import ClipReader, Frames

STREAM = 3  # of the seed's random numbers


def exchange(groups: Sequence[str], count: int, *, seed: int) -> np.ndarray:
  """Chooses `count` clips and gives each another chosen one's caption.

  Sorted by group (in a random order of the groups) and rotated by the size of
  the largest, no clip receives the caption of its own group.

  Args:
    groups: what each clip shows, N of them.
    count: how many captions are wrong in the end, exactly.
    seed: of the choice, at least 0.

  Returns:
    int64 [N]: whose caption each clip carries; itself where it is right.

  Raises:
    UserError: if there are too few clips, or too few groups among them.
  """
  source = np.arange(len(groups))
  if count == 0:
    return source
  rng = np.random.default_rng([seed, STREAM])
  chosen = rng.choice(len(groups), count, replace=False)
  sizes = collections.Counter(groups[i] for i in chosen)
  largest = max(sizes.values())
  if 2 * largest > count:
    raise UserError(
      f"{count} captions of {len(sizes)} combinations cannot be exchanged "
      "among themselves; give another share of mismatched ones (0 for none) or "
      "more clips"
    )
  order = {group: place for place, group in enumerate(sizes)}  # random
  ring = np.array(sorted(chosen, key=lambda i: order[groups[i]]))
  source[ring] = np.roll(ring, largest)
  return source


def mismatched(
  reader: "ClipReader", share: float, seed: int
) -> "ClipReader | MismatchedReader":
  """The reader itself where `share` is 0, else a MismatchedReader of it."""
  return MismatchedReader(reader, share, seed) if share else reader


class MismatchedReader:
  """A ClipReader some of whose clips carry the texts of another clip.

  round(share N) clips are chosen and exchange their texts, so that no text
  that a clip gets is one of its own group's (case and outer white space
  aside); their `matched` is 0. All others are as they were, except that an
  unknown `matched` (-1) becomes 1: the protocol takes the given captions as
  right. The pair indices stay those of the video's own record: of the texts
  that it gets, as many are used as it had, again from the first where they are
  fewer.

  The group of a clip is the record's, or its texts where it has none.

  A clip that cannot be read keeps its part in the exchange, as a group of its
  own: which clips are chosen does not depend on it, whose caption they carry
  may. The one that gets its texts counts as corrupt too.
  """

  def __init__(self, reader: "ClipReader", share: float, seed: int):
    """Reads all records once, and keeps the texts that change place.

    Args:
      reader: of a split.
      share: of the clips, in (0, 1).
      seed: of the choice, at least 0.

    Raises:
      UserError: `share` or `seed` is out of range, or there are too few clips
        or too few different texts.
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
    texts, groups = [], []
    corrupt: dict[int, CorruptRecord] = {}
    for index in range(len(reader)):
      try:
        (record,) = reader.read([index])
      except CorruptRecord as error:
        corrupt[index] = error
        record = {"texts": [], "group": f"\0{index}"}
      texts.append(record["texts"])
      groups.append(record["group"] or "\n".join(sorted(_plain(texts[-1]))))
    source = exchange(groups, count, seed=seed)
    source = _without_right_texts(source, groups, texts, seed)
    moved = np.flatnonzero(source != np.arange(len(reader)))
    self._texts = {int(i): texts[source[i]] for i in moved}
    self._corrupt = {
      int(i): corrupt[int(source[i])] for i in moved if source[i] in corrupt
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


def _plain(texts):
  return {text.strip().lower() for text in texts}


def _without_right_texts(source, groups, texts, seed):
  """`source` with exchanges until no clip gets a text of its own group.

  Groups that differ may share texts; `exchange` does not know.
  """
  of_group = collections.defaultdict(set)
  for group, own in zip(groups, texts, strict=True):
    of_group[group] |= _plain(own)

  def wrong(i, donor):
    return groups[i] != groups[donor] and not (
      of_group[groups[i]] & _plain(texts[donor])
    )

  rng = np.random.default_rng([seed, STREAM, 1])
  source = source.copy()
  moved = np.flatnonzero(source != np.arange(len(source)))
  for i in moved:
    if wrong(i, source[i]):
      continue
    for j in rng.permutation(moved):
      if wrong(i, source[j]) and wrong(j, source[i]):
        source[i], source[j] = source[j], source[i]
        break
    else:
      raise UserError(
        f"no other clip's texts are wrong for clip {i} ({texts[i][0]!r}): too"
        " few different captions among the chosen clips; give another share of"
        " mismatched ones (0 for none) or more clips"
      )
  return source
