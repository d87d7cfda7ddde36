"""Exchanged captions: how many, whose, and that they are wrong."""

import collections

import pytest

from calince_jax.data.input.label_noise import (
  MismatchedReader,
  mismatched,
)
from calince_jax.data.records.reader import ClipReader
from calince_jax.errors import UserError


class Records:
  """A ClipReader of records in memory."""

  def __init__(self, records):
    self.records = records

  def __len__(self):
    return len(self.records)

  def read(self, indices):
    return [dict(self.records[i]) for i in indices]


def records(texts, groups=None, matched=-1):
  """One record a list of texts; pair indices are counted on."""
  made, pair = [], 0
  for i, own in enumerate(texts):
    made.append(
      {
        "id": f"clip-{i}",
        "texts": own,
        "pair_indices": list(range(pair, pair + len(own))),
        "matched": [matched] * len(own),
        "group": groups[i] if groups else "",
      }
    )
    pair += len(own)
  return Records(made)


def read_all(reader):
  return reader.read(range(len(reader)))


def test_share_0_is_the_reader_itself(tiny_dataset):
  reader = ClipReader(tiny_dataset, "train")
  assert mismatched(reader, 0.0, 5) is reader
  assert isinstance(mismatched(reader, 0.5, 5), MismatchedReader)


@pytest.mark.parametrize("share, count", [(0.3, 12), (0.52, 21)])
def test_a_share_of_real_records_gets_other_texts(tiny_dataset, share, count):
  plain = ClipReader(tiny_dataset, "train")
  before, after = read_all(plain), read_all(mismatched(plain, share, 1))
  moved = [a["texts"] != b["texts"] for a, b in zip(after, before, strict=True)]
  assert sum(moved) == count
  all_texts = [record["texts"] for record in before]
  for was, now, other in zip(before, after, moved, strict=True):
    texts = ("texts", "matched")
    assert {k: v for k, v in now.items() if k not in texts} == {
      k: v for k, v in was.items() if k not in texts
    }
    if other:
      assert now["matched"] == [0, 0] and now["texts"] in all_texts
      # "red goes left" is right of several clips.
      assert not set(now["texts"]) & set(was["texts"])
    else:
      assert now["matched"] == was["matched"]
  count_of = collections.Counter(map(tuple, all_texts))
  assert collections.Counter(tuple(r["texts"]) for r in after) == count_of


def test_the_seed_decides_and_order_of_reading_does_not(tiny_dataset):
  plain = ClipReader(tiny_dataset, "train")
  one = read_all(mismatched(plain, 0.5, 1))
  again = mismatched(plain, 0.5, 1)
  assert [again.read([i])[0] for i in (7, 3, 7)] == [one[7], one[3], one[7]]
  assert read_all(mismatched(plain, 0.5, 2)) != one


@pytest.mark.parametrize("seed", range(20))
def test_no_clip_gets_a_text_that_its_own_group_has(seed):
  # Groups x and y say the same in other letters; z shares one of two texts.
  texts = [["A cat"], ["a dog"], [" a CAT "], ["a cow"]]
  texts += [["a hen", "a dog"], ["a pig"], ["a bee"], ["an owl"]]
  groups = ["x", "x", "y", "y", "z", "u", "v", "w"]
  made = read_all(mismatched(records(texts, groups), 0.99, seed))
  of_group = collections.defaultdict(set)
  for group, own in zip(groups, texts, strict=True):
    of_group[group] |= {text.strip().lower() for text in own}
  for group, record in zip(groups, made, strict=True):
    assert set(record["matched"]) == {0}
    got = {text.strip().lower() for text in record["texts"]}
    assert not got & of_group[group]


def test_pair_indices_stay_and_texts_are_cut_or_repeated():
  texts = [["a"], ["b", "c", "d"], ["e", "f"], ["g"]]
  plain = records(texts)
  for seed in range(10):
    made = read_all(mismatched(plain, 0.99, seed))
    for was, now in zip(plain.records, made, strict=True):
      n = len(was["pair_indices"])
      assert now["pair_indices"] == was["pair_indices"]
      assert len(now["texts"]) == len(now["matched"]) == n
      (donor,) = [own for own in texts if own[0] == now["texts"][0]]
      assert now["texts"] == [donor[i % len(donor)] for i in range(n)]


def test_what_was_unknown_is_taken_as_right_and_what_was_wrong_stays():
  plain = records([[f"text {i}"] for i in range(10)])
  plain.records[0]["matched"] = [0]
  made = read_all(mismatched(plain, 0.4, 0))
  wrong = [i for i, r in enumerate(made) if r["texts"] != [f"text {i}"]]
  assert len(wrong) == 4
  for i, record in enumerate(made):
    assert record["matched"] == [0 if i in wrong or i == 0 else 1]


@pytest.mark.parametrize(
  "texts, share, seed, message",
  [
    ([["a"], ["b"], ["c"]], 1.0, 0, "in \\[0, 1\\)"),
    ([["a"], ["b"], ["c"]], -0.5, 0, "in \\[0, 1\\)"),
    ([["a"], ["b"], ["c"]], 0.9, -1, "seed at least 0"),
    ([["a"], ["b"], ["c"]], 0.1, 0, "is 0 clip"),
    ([["a"], ["a"], ["a"], ["b"]], 0.99, 0, "cannot be exchanged"),
    ([["a", "b"], ["b", "c"], ["c", "a"]], 0.99, 0, "few different captions"),
  ],
)
def test_what_cannot_be_is_said(texts, share, seed, message):
  with pytest.raises(UserError, match=message):
    mismatched(records(texts), share, seed)
