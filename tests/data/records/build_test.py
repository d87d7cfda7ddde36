"""build: any source will do, and any process can write any shard."""

import dataclasses
import hashlib
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.hostile.films import GOOD, film
from calince_jax.data.records import caption_lengths, plan
from calince_jax.data.records.build import build
from calince_jax.data.records.reader import ClipReader
from calince_jax.data.sources.choose import choose_source
from calince_jax.data.sources.item import Caption, Clip, Media
from calince_jax.data.sources.manifest import Manifest
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.data.video.jpeg import Encoding
from calince_jax.data.video.workers import DecodeWorkers

ENCODING = Encoding(frame_rate=4.0, short_side=32)
COUNT = 8


@pytest.fixture(scope="module")
def films(tmp_path_factory):
  """0.mp4 to 7.mp4 and a manifest of them, clips.csv."""
  folder = tmp_path_factory.mktemp("films")
  rows = ["video,text,start,label"]
  for i in range(COUNT):
    film(folder / f"{i}.mp4", *GOOD["mp4"][:2], frames=8 + i)
    rows.append(f"{i}.mp4,film number {i},{0.25 if i % 2 else ''},film")
  rows += ["7.mp4,again number 7,0.25,film", "0.mp4,too late,77,film"]
  (folder / "clips.csv").write_text("\n".join(rows))
  return folder


def prepared(source, out):
  build(
    source,
    out,
    encoding=ENCODING,
    tokenizer=None,
    vocab_size=100,
    clips_per_shard=3,
    num_workers=1,
    time_limit=60.0,
    memory_limit_mb=2048,
    max_bad_fraction=0.5,
  )
  return contents(out)


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def whole(films, tmp_path_factory):
  """The manifest's data set, in 3 shards."""
  out = tmp_path_factory.mktemp("whole") / "set"
  return prepared(Manifest(str(films / "clips.csv")), out)


# ------------------------------------------------------------ a source


@dataclasses.dataclass(frozen=True)
class Tar:
  """The clips of a manifest, their videos in an uncompressed tar file."""

  path: Path
  clips: tuple[Clip, ...]

  def digest(self):
    return hashlib.sha256(self.path.read_bytes()).hexdigest()

  def scan(self):
    with tarfile.open(self.path) as tar:
      members = {member.name: member for member in tar.getmembers()}
    path = os.path.realpath(self.path)
    return [
      dataclasses.replace(
        clip,
        media=Media(
          path, members[clip.video].offset_data, members[clip.video].size
        ),
      )
      for clip in self.clips
    ], []


def test_a_tar_gives_the_records_of_its_files(films, whole, tmp_path):
  with tarfile.open(tmp_path / "films.tar", "w") as tar:
    for i in reversed(range(COUNT)):
      tar.add(films / f"{i}.mp4", f"{i}.mp4")
  clips, _ = Manifest(str(films / "clips.csv")).scan()
  tar = Tar(tmp_path / "films.tar", tuple(clips))
  made = prepared(tar, tmp_path / "set")
  shards = [name for name in whole if name.startswith("clips-")]
  assert len(shards) == 6  # and their heads
  for name in [*shards, "ledger.csv", "tokenizer.model"]:
    assert made[name] == whole[name]
  assert made["dataset.json"] != whole["dataset.json"]  # it has the digest


def test_a_source_of_its_own_making(films, tmp_path):
  class One:
    def digest(self):
      return "0" * 64

    def scan(self):
      media = Media(str(films / "3.mp4"))
      captions = (Caption("a film", 0, None), Caption("it moves", 1, 1))
      fields = {"label": "", "split": "val", "group": "g", "line": 1}
      return [
        Clip("x", "3", media, 0.25, 0.75, captions=captions, **fields)
      ], []

  prepared(One(), tmp_path / "set")
  (record,) = ClipReader(tmp_path / "set", "val").read([0])
  assert record["texts"] == ["a film", "it moves"]
  assert (record["matched"], record["group"]) == ([-1, 1], "g")
  assert len(record["frames"]) == 2


# ------------------------------------------------------------ shards


def test_shards_are_written_anywhere_in_any_order(films, whole, tmp_path):
  clips, _ = Manifest(str(films / "clips.csv")).scan()
  shards = plan.plan_shards(clips, 3)
  assert len(shards) == 3
  reports = []
  for machine, shard in enumerate(reversed(shards)):
    folder = tmp_path / str(machine)
    (folder / plan.WORK_FOLDER).mkdir(parents=True)
    with DecodeWorkers(
      1, ENCODING, time_limit=60.0, memory_limit_mb=2048
    ) as workers:
      note = plan.write_shard_of_clips(folder, shard, workers, reports.append)
    assert plan.read_note(folder, shard) == note
    names = [name for name in contents(folder) if name.startswith("clips-")]
    assert len(names) == 2  # the shard and its heads
    for name in names:
      assert contents(folder)[name] == whole[name]
  assert len(reports) == len(clips)
  assert [p.what for p in reports if p] == ["outside the video"]


def test_one_pool_writes_several_shards(films, whole, tmp_path):
  """Nothing of a shard is left in the workers, also of one that failed."""

  def stop(problem):
    raise KeyboardInterrupt

  clips, _ = Manifest(str(films / "clips.csv")).scan()
  (tmp_path / plan.WORK_FOLDER).mkdir()
  with DecodeWorkers(
    2, ENCODING, time_limit=60.0, memory_limit_mb=2048
  ) as workers:
    shards = plan.plan_shards(clips, 3)
    with pytest.raises(KeyboardInterrupt):
      plan.write_shard_of_clips(tmp_path, shards[0], workers, stop)
    assert contents(tmp_path) == {}
    for shard in shards:
      plan.write_shard_of_clips(tmp_path, shard, workers, lambda problem: None)
  made = contents(tmp_path)
  assert len(made) == 6 and made.items() <= whole.items()


def test_the_digest_of_a_plan_is_that_of_earlier_versions(tmp_path):
  """Their interrupted work is resumed: it holds no path, and no new field."""
  captions = (Caption("one", 0, 1), Caption("zwö", 2, None))
  first = {"label": "run", "split": "val", "group": "g", "line": 2}
  second = {"label": "", "split": "train", "group": "", "line": 3}
  clips = [
    Clip("x", "a.mp4", Media("/a"), 0.25, None, captions=captions, **first),
    Clip(
      *("b.mp4", "b.mp4", Media("/b", 5, 9), None, None),
      captions=(Caption("two", 1, 0),),
      **second,
    ),
  ]
  (tmp_path / plan.WORK_FOLDER).mkdir()
  plan.begin(tmp_path, {"a": 1}, clips, shared=False)
  path = tmp_path / plan.WORK_FOLDER / "plan.json"
  assert json.loads(path.read_text()) == {
    "a": 1,
    "list of usable videos": (
      "fd297f3e3de338fcd5a37ddecf3dfc12123fbdd2b34e673af8eab5dd81772f85"
    ),
  }


def test_captions_longer_than_the_model_reads_are_counted(whole, tmp_path):
  counts = json.loads(whole["captions.json"])
  (tmp_path / "captions.json").write_bytes(whole["captions.json"])
  (tmp_path / "tokenizer.model").write_bytes(whole["tokenizer.model"])
  tokenizer = Tokenizer(tmp_path / "tokenizer.model")
  texts = [f"film number {i}" for i in range(COUNT)]
  texts += ["again number 7", "too late"]
  lengths = []
  for text in texts:
    _, mask = tokenizer.encode([text], 100)
    lengths.append(int(mask.sum()))
  assert counts == {"train": np.bincount(lengths).tolist()}
  longest = max(lengths)
  for length in range(3, longest):
    cut = sum(n > length for n in lengths)
    said = caption_lengths.describe_cut(tmp_path, "train", length)
    assert said.startswith(f"{cut} of {len(texts)} captions (")
    assert said.endswith(f"more than {length} tokens, the longest {longest}")
  assert caption_lengths.describe_cut(tmp_path, "train", longest) == ""
  assert caption_lengths.describe_cut(tmp_path / "older", "train", 3) == ""


def test_other_sources_of_the_same_clips_make_the_same_records(
  films, whole, tmp_path
):
  clips, _ = Manifest(str(films / "clips.csv")).scan()
  clips = [clip for clip in clips if clip.start != 77]
  rows = [
    {"film": clip.video.removesuffix(".mp4"), "text": caption.text}
    | {c: getattr(clip, c) for c in ("id", "start", "label", "split", "group")}
    for clip in clips
    for caption in clip.captions
  ]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "films.parquet")
  (tmp_path / "films").mkdir()
  for clip in clips:
    document = {
      c: getattr(clip, c) for c in ("id", "start", "label", "split", "group")
    }
    document["text"] = [caption.text for caption in clip.captions]
    (tmp_path / "films" / f"{clip.video}").write_bytes(
      (films / clip.video).read_bytes()
    )
    text = json.dumps(document)
    (tmp_path / "films" / f"{clip.video[:-4]}.json").write_text(text)
  with tarfile.open(tmp_path / "films.tar", "w") as tar:
    for path in sorted((tmp_path / "films").iterdir()):
      tar.add(path, path.name)
  sources = {
    "parquet": ("films.parquet", {"columns": "video:film", "root": str(films)}),
    "folder": ("films", {}),
    "tar": ("films.tar", {}),
  }
  for name, (path, more) in sources.items():
    source = choose_source(str(tmp_path / path), **more)
    prepared(source, tmp_path / f"{name} set")

  def clips_of(name):
    reader = ClipReader(tmp_path / f"{name} set", "train")
    records = reader.read(range(len(reader)))
    return {r.pop("id"): r | {"pair_indices": None} for r in records}

  assert clips_of("folder") == clips_of("tar") == clips_of("parquet")
  assert len(clips_of("tar")) > 3
  (record,) = (r for r in clips_of("tar").values() if len(r["texts"]) > 1)
  assert record["texts"] == ["film number 7", "again number 7"]
