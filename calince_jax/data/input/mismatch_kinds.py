"""Which wrong texts mismatched clips carry, by kind.

    uniform        another clip's, whichever
    near           another clip's that says almost the same
    within_group   another clip's of its group: one scene, source or day
    partial        its own with one half replaced by half of another clip's
    shifted        the next clip's of its group, as in narrated video

`uniform` and `near` exchange texts: each text is used as often as before. All
are drawn from the seed alone, and no clip gets a text that it or (unless the
kind says so) its group has, case and outer white space aside.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

from calince_jax.errors import UserError, check_choice

STREAM = 3  # of the seed's random numbers
BLOCK = 1000  # clips, in the order of their captions, that `near` looks at


@dataclasses.dataclass(frozen=True)
class Clips:
  """What the kinds look at, of N clips.

  Attributes:
    ids: names.
    texts: captions of each clip; none where it cannot be read.
    groups: "" where the source has none.
  """

  ids: Sequence[str]
  texts: Sequence[Sequence[str]]
  groups: Sequence[str]

  def combinations(self) -> list[str]:
    """What each clip shows: its group, or its texts where it has none."""
    return [
      group or "\n".join(sorted(plain(texts))) or f"\0{i}"
      for i, (group, texts) in enumerate(
        zip(self.groups, self.texts, strict=True)
      )
    ]


@dataclasses.dataclass(frozen=True)
class Wrong:
  """What a mismatched clip carries: `texts`, which come from clip `donor`."""

  donor: int
  texts: Sequence[str]


def draw(kind: str, clips: Clips, count: int, seed: int) -> dict[int, Wrong]:
  """The wrong texts of `count` clips, exactly.

  Args:
    kind: one of KINDS.
    clips: of a split.
    count: at least 2.
    seed: at least 0.

  Raises:
    UserError: an unknown kind, or the clips have no `count` wrong texts of it.
  """
  check_choice("data.mismatch_kind", kind, list(KINDS))
  return KINDS[kind](clips, count, seed)


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


def plain(texts: Sequence[str]) -> set[str]:
  """The texts as they are compared."""
  return {text.strip().lower() for text in texts}


def _uniform(clips: Clips, count: int, seed: int) -> dict[int, Wrong]:
  groups = clips.combinations()
  source = exchange(groups, count, seed=seed)
  moved = np.flatnonzero(source != np.arange(len(source)))
  wrong = _is_wrong(clips)
  rng = np.random.default_rng([seed, STREAM, 1])
  for i in moved:  # groups that differ may share texts
    if wrong(i, source[i]):
      continue
    for j in rng.permutation(moved):
      if wrong(i, source[j]) and wrong(j, source[i]):
        source[i], source[j] = source[j], source[i]
        break
    else:
      raise _too_few_texts(clips, i)
  return {int(i): _whole(clips, source[i]) for i in moved}


def _near(clips: Clips, count: int, seed: int) -> dict[int, Wrong]:
  """The exchange of the chosen clips with the most words in common.

  Words count by their rarity (TF-IDF, cosine). The chosen clips are sorted by
  caption, which brings the same beginnings together, and each block of them
  exchanges within itself.
  """
  # Slow to import, and the synthetic corpus exchanges without them.
  from scipy import optimize
  from sklearn.feature_extraction.text import TfidfVectorizer

  rng = np.random.default_rng([seed, STREAM])
  chosen = rng.choice(len(clips.texts), count, replace=False)
  joined = {i: " ".join(clips.texts[i]) for i in chosen}
  ring = sorted(chosen, key=lambda i: (joined[i].lower(), i))
  words = TfidfVectorizer(token_pattern=r"\S+")
  found = words.fit_transform([joined[i] or "\0" for i in ring])
  wrong, result = _is_wrong(clips), {}
  for block in np.array_split(np.arange(count), -(-count // BLOCK)):
    likeness = (found[block] @ found[block].T).toarray()
    members = [int(ring[b]) for b in block]
    for a, i in enumerate(members):
      for b, j in enumerate(members):
        if i == j or not wrong(i, j):
          likeness[a, b] = -len(block)  # more than all others together
    rows, columns = optimize.linear_sum_assignment(likeness, maximize=True)
    for a, b in zip(rows, columns, strict=True):
      if likeness[a, b] < 0:
        raise _too_few_texts(clips, members[a])
      result[members[a]] = _whole(clips, members[b])
  return result


def _within_group(clips: Clips, count: int, seed: int) -> dict[int, Wrong]:
  members = collections.defaultdict(list)
  for i, group in enumerate(clips.groups):
    if group:
      members[group].append(i)
  of_clip = {i: members[group] for i, group in enumerate(clips.groups)}
  what = "another clip of its group with other texts"
  return _copied(clips, count, seed, of_clip, what)


def _shifted(clips: Clips, count: int, seed: int) -> dict[int, Wrong]:
  """The clips of a recording follow each other in the order of their ids."""
  recordings = collections.defaultdict(list)
  for i, name in enumerate(clips.ids):
    recordings[clips.groups[i] or name.partition("#")[0]].append(i)
  neighbours = {}
  for members in recordings.values():
    members.sort(key=lambda i: _by_number(clips.ids[i]))
    for i, j in itertools.pairwise(members):
      neighbours[i] = [j]
    if len(members) > 1:
      neighbours[members[-1]] = [members[-2]]
  what = "a neighbouring clip, by group and id, with other texts"
  return _copied(clips, count, seed, neighbours, what)


def _partial(clips: Clips, count: int, seed: int) -> dict[int, Wrong]:
  """Keeps the first or the last half of the words, of one word none."""
  whole = _uniform(clips, count, seed)
  rng = np.random.default_rng([seed, STREAM, 2])
  result = {}
  for i, wrong in whole.items():
    own, others = clips.texts[i], itertools.cycle(wrong.texts or [""])
    pairs = list(zip(own, others, strict=False))
    first = rng.random() < 0.5
    for keep_first in (first, not first):
      mixed = [_mix(*pair, keep_first) for pair in pairs]
      if not plain(mixed) & plain(own):
        break
    else:  # both halves are the same: of one word, or a word twice
      mixed = wrong.texts
    result[i] = Wrong(wrong.donor, mixed)
  return result


KINDS: dict[str, Callable[[Clips, int, int], dict[int, Wrong]]] = {
  "uniform": _uniform,
  "near": _near,
  "within_group": _within_group,
  "partial": _partial,
  "shifted": _shifted,
}


def _whole(clips, donor):
  return Wrong(int(donor), clips.texts[donor])


def _is_wrong(clips):
  """(i, donor) -> whether the donor's texts are wrong for clip i's group."""
  groups = clips.combinations()
  of_group = collections.defaultdict(set)
  for group, own in zip(groups, clips.texts, strict=True):
    of_group[group] |= plain(own)
  compared = [plain(own) for own in clips.texts]

  def wrong(i, donor):
    return groups[i] != groups[donor] and not (
      of_group[groups[i]] & compared[donor]
    )

  return wrong


def _copied(clips, count, seed, donors, what):
  """`count` of the clips that `donors` has others for, with one's texts each.

  Args:
    donors: {clip: clips whose texts it may get, itself among them or not}.
    what: such donors, in words.
  """
  compared = [plain(own) for own in clips.texts]

  def differ(i, j):
    return bool(compared[j]) and not compared[i] & compared[j]

  candidates = [
    i for i, others in donors.items() if any(differ(i, j) for j in others)
  ]
  if len(candidates) < count:
    raise UserError(
      f"{count} clips are to be mismatched, and {len(candidates)} have {what}:"
      " give a smaller share, another data.mismatch_kind, or a manifest whose"
      " column 'group' names the recording, scene or day of a clip"
    )
  rng = np.random.default_rng([seed, STREAM])
  return {
    int(i): _whole(
      clips, next(j for j in rng.permutation(donors[i]) if differ(i, j))
    )
    for i in rng.choice(sorted(candidates), count, replace=False)
  }


def _mix(text, other, first):
  """Half of each: the first half of `text` if `first`, else the last."""
  mine, others = text.split(), other.split()
  cut, other_cut = len(mine) // 2, len(others) // 2
  if first:
    return " ".join(mine[:cut] + others[other_cut:])
  return " ".join(others[:other_cut] + mine[cut:]) if cut else other


def _by_number(name):
  """A key that sorts "clip#9.5-12" before "clip#10-11"."""
  parts = re.split(r"(\d+(?:\.\d+)?)", name)
  return [(float(p), "") if k % 2 else (0.0, p) for k, p in enumerate(parts)]


def _too_few_texts(clips, i):
  text = clips.texts[i][0] if clips.texts[i] else clips.ids[i]
  return UserError(
    f"no other clip's texts are wrong for clip {i} ({text!r}): too few"
    " different captions among the chosen clips; give another share of"
    " mismatched ones (0 for none) or more clips"
  )
