"""Kinds of wrong captions: how many, whose, and that they are wrong."""

import collections

import numpy as np
import pytest

from calince_jax.data.input import mismatch_kinds
from calince_jax.data.input.label_noise import MismatchedReader
from calince_jax.data.input.mismatch_kinds import KINDS, Clips, draw, exchange
from calince_jax.errors import UserError

VERBS = ("open", "close", "push", "pull")
THINGS = ("door", "drawer", "window", "box", "jar")
PLACES = ("left", "right", "middle")


def tasks():
  """60 clips, of each verb and thing a group of three moments."""
  names = [(v, t) for v in VERBS for t in THINGS]
  return Clips(
    ids=[f"{v}-{t}.mp4#{i}-{i + 1}" for v, t in names for i in (9, 10, 8)],
    texts=[[f"{v} the {t} on the {p}"] for v, t in names for p in PLACES],
    groups=[f"{v} {t}" for v, t in names for _ in PLACES],
  )


class Records:
  """A ClipReader of records in memory, as `tasks` says."""

  def __init__(self, clips):
    self.records = [
      {"id": i, "texts": t, "group": g, "pair_indices": [k], "matched": [-1]}
      for k, (i, t, g) in enumerate(
        zip(clips.ids, clips.texts, clips.groups, strict=True)
      )
    ]

  def __len__(self):
    return len(self.records)

  def read(self, indices):
    return [dict(self.records[i]) for i in indices]


def words(text):
  return set(text.split())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.55])
def test_exactly_the_share_is_wrong_and_says_so(kind, share):
  plain = Records(tasks())
  reader = MismatchedReader(plain, share, 3, kind)
  made = reader.read(range(60))
  changed = [
    now["texts"] != was["texts"]
    for now, was in zip(made, plain.records, strict=True)
  ]
  assert sum(changed) == round(share * 60)
  assert [r["matched"] for r in made] == [[0 if c else 1] for c in changed]
  again = MismatchedReader(plain, share, 3, kind).read(range(60))
  other = MismatchedReader(plain, share, 4, kind).read(range(60))
  assert made == again != other


def test_near_texts_share_more_words_than_any_and_are_an_exchange():
  clips = tasks()

  def likeness(kind):
    wrong = draw(kind, clips, 30, 0)
    assert sorted(wrong) == sorted(w.donor for w in wrong.values())
    assert all(
      clips.groups[i] != clips.groups[w.donor] for i, w in wrong.items()
    )
    return np.mean(
      [
        len(words(clips.texts[i][0]) & words(w.texts[0]))
        for i, w in wrong.items()
      ]
    )

  # "the", "on", "the" are everyone's; near ones share verb or thing, and place.
  assert likeness("near") > 3.9
  assert likeness("uniform") < 3.2


def test_near_exchanges_within_blocks(monkeypatch):
  monkeypatch.setattr(mismatch_kinds, "BLOCK", 10)
  wrong = draw("near", tasks(), 40, 0)
  assert len(wrong) == 40
  assert sorted(wrong) == sorted(w.donor for w in wrong.values())


def test_within_group_texts_are_of_another_clip_of_the_group():
  clips = tasks()
  for i, wrong in draw("within_group", clips, 60, 0).items():
    assert clips.groups[i] == clips.groups[wrong.donor] and i != wrong.donor
    assert wrong.texts == clips.texts[wrong.donor] != clips.texts[i]


@pytest.mark.parametrize("grouped", [True, False])
def test_shifted_texts_are_the_next_clips_in_time(grouped):
  clips = tasks()
  if not grouped:  # then the video that the id names
    clips = Clips(clips.ids, clips.texts, [""] * 60)
  wrong = draw("shifted", clips, 60, 0)
  # Of each three, in the order of their ids: 8 (third), 9 (first), 10 (second).
  for first in range(0, 60, 3):
    donors = [wrong[first + k].donor - first for k in range(3)]
    assert donors == [1, 0, 0]


def test_partial_texts_are_half_right():
  clips = tasks()
  halves = collections.Counter()
  for i, wrong in draw("partial", clips, 60, 0).items():
    (own,), (text,) = clips.texts[i], wrong.texts
    own, text = own.split(), text.split()
    assert text != own and len(text) == len(own)
    assert text[:3] == own[:3] or text[3:] == own[3:]
    donor = clips.texts[wrong.donor][0].split()
    assert text[:3] == donor[:3] or text[3:] == donor[3:]
    halves[text[:3] == own[:3]] += 1
  assert min(halves.values()) > 5


def test_one_word_cannot_be_half_right():
  clips = Clips(list("abcd"), [["cat"], ["dog"], ["cow"], ["hen"]], [""] * 4)
  for i, wrong in draw("partial", clips, 4, 0).items():
    assert wrong.texts == clips.texts[wrong.donor] != clips.texts[i]


@pytest.mark.parametrize("kind", ["within_group", "shifted"])
def test_a_kind_that_needs_groups_says_so(kind):
  lone = Clips(
    [f"clip {i}" for i in range(9)], [[f"{i}"] for i in range(9)], [""] * 9
  )
  with pytest.raises(UserError, match=r"5 clips .* 0 have .* column 'group'"):
    draw(kind, lone, 5, 0)
  same = Clips(lone.ids, [["one"]] * 9, ["g"] * 9)
  with pytest.raises(UserError, match="0 have"):
    draw(kind, same, 5, 0)


def test_near_needs_different_captions():
  same = Clips(list("abcd"), [["one"]] * 3 + [["two"]], [""] * 4)
  with pytest.raises(UserError, match="few different captions"):
    draw("near", same, 4, 0)


def test_an_unknown_kind_is_refused():
  with pytest.raises(UserError, match="mismatch_kind.*'far'.*'near'"):
    draw("far", tasks(), 4, 0)


def test_exchange_never_stays_within_a_combination():
  groups = ["a"] * 4 + ["b"] * 4 + ["c", "d", "e"]
  for seed in range(50):
    source = exchange(groups, 11, seed=seed)
    assert sorted(source) == list(range(11))
    assert all(groups[i] != groups[j] for i, j in enumerate(source))
  assert len({tuple(exchange(groups, 11, seed=s)) for s in (1, 2)}) == 2


def test_exchange_refuses_what_it_cannot_do():
  with pytest.raises(UserError, match="cannot be exchanged"):
    exchange(["a", "b", "c"], 1, seed=0)
  with pytest.raises(UserError, match="cannot be exchanged"):
    exchange(["a", "a", "a", "b"], 4, seed=0)
