"""The card of a data set: numbers as counted by hand, and a safe page."""

import csv
import re

import numpy as np
import pytest
from conftest import picture

from calince_jax.data.problems import HEADER
from calince_jax.data.records import schema, writer
from calince_jax.errors import UserError
from calince_jax.evals.report import charts
from calince_jax.evals.report.survey import groups, survey
from calince_jax.report import Options, report

SCRIPT = "<script>alert(1)</script> & a 'square'"


def record(name, split, pairs, *, frames, texts, seconds=1.0):
  return {
    "id": name,
    "frames": frames,
    "texts": texts,
    "pair_indices": pairs,
    "matched": [-1] * len(texts),
    "label": SCRIPT if split == "test" else "way",
    "split": split,
    "group": "",
    "duration": seconds,
    "width": 40,
    "height": 32,
  }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Five clips: b has the frames of a, and so has test clip e; c says A's."""
  folder = tmp_path_factory.mktemp("set")
  one = [picture("red", True, t, 0) for t in range(4)]
  two = [picture("blue", True, t, 0) for t in range(6)]
  bad = [b"\xff\xd8\xff no picture"] * 2
  splits = {
    "train": [
      record("a", "train", [0], frames=one, texts=["A red  square"]),
      record("b", "train", [1], frames=one, texts=["word " * 40]),
      record("c", "train", [2, 3], frames=two, texts=["a red square", SCRIPT]),
      record(SCRIPT, "train", [4], frames=bad, texts=["x"], seconds=9.0),
    ],
    "test": [record("e", "test", [5], frames=one, texts=[SCRIPT.upper()])],
  }
  shards, info = {}, {}
  for split, records in splits.items():
    path = schema.shard_path(folder, split, 0, 1)
    shards[split] = [(len(records), writer.write_shard(path, records))]
    count = sum(len(r["texts"]) for r in records)
    info[split] = {"clips": len(records), "pairs": count}
  (folder / "captions.json").write_text('{"train": [0, 0, 3, 2], "test": [1]}')
  with open(folder / "ledger.csv", "w", newline="") as file:
    reasons = ["empty file", SCRIPT, SCRIPT]
    rows = [["x.mp4", reason, "", ""] for reason in reasons]
    csv.writer(file).writerows([HEADER, *rows])
  writer.write_info(
    folder,
    schema.DatasetInfo(
      format_version=schema.FORMAT_VERSION,
      name=SCRIPT,
      frame_rate=8.0,
      short_side=32,
      splits=info,
      num_pairs=6,
      labels=["way"],
      manifest_sha256="",
      settings={"max_frames": 6},
    ),
    shards,
  )
  return folder


def test_the_survey_counts(folder):
  found = survey(folder)
  assert found.duration.tolist() == [1.0, 1.0, 1.0, 9.0, 1.0]
  assert found.frames.tolist() == [4, 4, 6, 2, 4]
  assert found.words.tolist() == [3, 40, 3, 4, 1, 4]
  assert found.caption_clip.tolist() == [0, 1, 2, 2, 3, 4]
  assert found.sizes == {(40, 32): 5}
  assert found.reasons == {SCRIPT: 2, "empty file": 1}
  first, counts = groups(found.content)
  assert (first.tolist(), counts.tolist()) == ([0], [3])
  first, counts = groups(found.caption)
  assert (first.tolist(), counts.tolist()) == ([0, 3], [2, 2])


def test_the_card_says_what_is_in_the_data_set(folder, tmp_path, capsys):
  page = report(Options(data=str(folder), out=str(tmp_path / "c.html")))
  page = page.read_text()
  said = capsys.readouterr().out
  assert "unusable: 37.5 %" in said  # three of eight
  assert "clips with the frames of another one: 40.0 %" in said
  text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
  for words in (
    "1 clips of split test have the frames of a clip of split train",
    "1 clips have the 6 frames that --max_frames allows",
    "train 4 5 0.00 1.0",  # clips, captions, hours, median
    "empty file 1 33.3 %",
    "A red square 2",
    "5 clips, drawn at random",
  ):
    assert words in text, words
  # Four strips of film; the clip that is no picture is shown without one.
  assert page.count("data:image/jpeg;base64,") == 4
  assert "<script" not in page.lower() and "&lt;script&gt;" in page
  assert "drawn" in page and "http://" not in page.replace("http://www.w3", "")


def test_the_card_lies_in_the_data_set(folder, tiny_dataset):
  assert report(Options(data=str(folder))) == folder / "card.html"
  with pytest.raises(UserError, match="not a prepared data set"):
    report(Options(data=str(folder / "none")))


def test_a_damaged_record_is_counted(folder, tmp_path):
  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  (heads,) = tmp_path.glob("*train*.heads")
  content = bytearray(heads.read_bytes())
  at = content.index(b"word word")
  content[at] ^= 1
  heads.write_bytes(bytes(content))
  assert survey(tmp_path).corrupt == 1
  page = report(Options(data=str(tmp_path))).read_text()
  assert "1 records cannot be read" in page
  (tmp_path / "ledger.csv").write_text("a,b\n1,2\n")
  with pytest.raises(UserError, match=r"ledger\.csv cannot be read"):
    survey(tmp_path)


def test_bars_hold_every_value_but_the_largest_few():
  for values in (
    np.array([3, 3, 3], np.int32),
    np.arange(1000, dtype=np.int32),
    np.zeros(4, np.float32),
    np.linspace(0, 7, 50, dtype=np.float32),
  ):
    drawn = charts.bar_chart(values, unit="s", bars=24)
    counts = [
      int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)</", drawn)
    ]
    assert len(counts) <= 24
    assert 0.99 * len(values) <= sum(counts) <= len(values)
