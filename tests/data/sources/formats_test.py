"""Sources that are no manifest: small files in the shape that is published."""

import collections
import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calince_jax.data.sources.annotations import FORMATS
from calince_jax.data.sources.choose import choose_source, expand
from calince_jax.data.sources.find import Finder
from calince_jax.data.sources.manifest import BadRow, Manifest
from calince_jax.errors import UserError


def write(folder, files):
  """Writes {name: text, bytes or what becomes JSON}."""
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
      content = json.dumps(content)
    path.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )


def scanned(source):
  """{split: [(video's file, start, end, label, group, [texts])]}, problems."""
  clips, problems = source.scan()
  found = collections.defaultdict(list)
  for clip in clips:
    texts = [caption.text for caption in clip.captions]
    name = clip.media.path.rpartition("/")[2]
    found[clip.split].append(
      (name, clip.start, clip.end, clip.label, clip.group, texts)
    )
  return dict(found), [(p.path, p.what) for p in problems]


def whole(name, *texts, label="", group=""):
  return name, None, None, label, group, list(texts)


MSRVTT = {
  "info": {"year": "2016"},
  "videos": [
    {"video_id": f"video{i}", "category": 9, "start time": 1, "split": split}
    for i, split in enumerate(("train", "train", "validate", "test"))
  ],
  "sentences": [
    {"sen_id": k, "video_id": f"video{k // 2}", "caption": f"c{k}"}
    for k in range(8)
  ],
}
CASES = {
  # format: (annotation files, videos, what is found)
  "msrvtt": (
    {"MSRVTT_data.json": MSRVTT},
    [f"all/video{i}.mp4" for i in range(4)],
    {
      "train": [
        whole("video0.mp4", "c0", "c1"),
        whole("video1.mp4", "c2", "c3"),
      ],
      "val": [whole("video2.mp4", "c4", "c5")],
      "test": [whole("video3.mp4", "c6", "c7")],
    },
  ),
  "msvd": (
    {"AllVideoDescriptions.txt": "# MSVD\n\nx-Y_1_9 a cat\nx-Y_1_9 one cat\n"},
    ["YouTubeClips/x-Y_1_9.avi"],
    {"train": [whole("x-Y_1_9.avi", "a cat", "one cat")]},
  ),
  "didemo": (
    {
      "val_data.json": [
        {
          "video": "12@N00_3_ab.mov",
          "description": "the dog turns",
          "times": [[1, 2], [1, 1]],
          "annotation_id": 5,
          "num_segments": 6,
        }
      ]
    },
    ["12@N00_3_ab.mov"],
    {"val": [("12@N00_3_ab.mov", 5.0, 15.0, "", "", ["the dog turns"])]},
  ),
  "activitynet": (
    {
      "val_1.json": {
        "v_Q": {
          "duration": 82.7,
          "timestamps": [[0.8, 19.9], [17.3, 60.8]],
          "sentences": ["A man stands.", " He sits."],
        }
      }
    },
    ["v_Q.mkv"],
    {
      "val": [
        ("v_Q.mkv", 0.8, 19.9, "", "", ["A man stands."]),
        ("v_Q.mkv", 17.3, 60.8, "", "", ["He sits."]),
      ]
    },
  ),
  "youcook2": (
    {
      "youcookii_annotations_trainval.json": {
        "database": {
          "GL": {
            "duration": 241.6,
            "subset": "training",
            "recipe_type": "113",
            "annotations": [{"segment": [90, 102], "id": 0, "sentence": "fry"}],
            "video_url": "https://example.com",
          }
        }
      }
    },
    ["training/113/GL.webm"],
    {"train": [("GL.webm", 90.0, 102.0, "113", "", ["fry"])]},
  ),
  "vatex": (
    {
      "vatex_validation_v1.0.json": [
        {"videoID": "a_000010_000020", "enCap": ["one", "two"], "chCap": ["x"]}
      ]
    },
    ["a_000010_000020.mp4"],
    {"val": [whole("a_000010_000020.mp4", "one", "two")]},
  ),
  "ucf101": (
    {
      "trainlist01.txt": "PlayingGuitar/v_PlayingGuitar_g08_c01.avi 1\n",
      "testlist01.txt": "YoYo/v_YoYo_g01_c02.avi\n",
    },
    ["PlayingGuitar/v_PlayingGuitar_g08_c01.avi", "YoYo/v_YoYo_g01_c02.avi"],
    {
      "train": [
        whole(
          "v_PlayingGuitar_g08_c01.avi",
          "playing guitar",
          label="PlayingGuitar",
          group="PlayingGuitar/v_PlayingGuitar_g08",
        )
      ],
      "test": [
        whole(
          "v_YoYo_g01_c02.avi",
          "yo yo",
          label="YoYo",
          group="YoYo/v_YoYo_g01",
        )
      ],
    },
  ),
  "hmdb51": (
    {"brush_hair_test_split1.txt": "a.avi 1 \nb.avi 2 \nc.avi 0 \n"},
    ["brush_hair/a.avi", "brush_hair/b.avi", "brush_hair/c.avi"],
    {
      "train": [whole("a.avi", "brush hair", label="brush_hair")],
      "test": [whole("b.avi", "brush hair", label="brush_hair")],
    },
  ),
  "kinetics": (
    {
      "kinetics_val.csv": "label,youtube_id,time_start,time_end,split\n"
      "air drumming,-0Q,8,18,validate\n"
    },
    ["air drumming/-0Q_000008_000018.mp4"],
    {
      "val": [
        whole("-0Q_000008_000018.mp4", "air drumming", label="air drumming")
      ]
    },
  ),
  "didemo_paragraph": (
    {
      "test_data.json": [
        {"video": "a.mov", "description": "then b", "times": [[2, 2]]},
        {"video": "a.mov", "description": "first a", "times": [[0, 1]]},
      ]
    },
    ["a.mov"],
    {"test": [whole("a.mov", "first a then b")]},
  ),
  "activitynet_paragraph": (
    {
      "val_1.json": {
        "v_Q": {
          "timestamps": [[0.8, 19.9], [17.3, 60.8]],
          "sentences": ["A man stands.", " He sits."],
        }
      }
    },
    ["v_Q.mkv"],
    {"val": [whole("v_Q.mkv", "A man stands. He sits.")]},
  ),
  "webvid": (
    {
      "results_2M_val.csv": "videoid,contentUrl,duration,page_dir,name\n"
      '12,https://example.com/12.mp4,PT00H00M08S,006_010,"Sea, at night"\n'
    },
    ["006_010/12.mp4"],
    {"val": [whole("12.mp4", "Sea, at night")]},
  ),
}


def test_every_format_is_tried():
  assert set(CASES) == set(FORMATS)


@pytest.mark.parametrize("form", CASES)
def test_published_annotations(form, tmp_path):
  files, videos, expected = CASES[form]
  write(tmp_path / "annotations", files)
  write(tmp_path / "videos", dict.fromkeys(videos, b"film"))
  names = ",".join(str(tmp_path / "annotations" / name) for name in files)

  def chosen():
    root = str(tmp_path / "videos")
    return choose_source(names, form=form, root=root)

  assert scanned(chosen()) == (expected, [])
  digest = chosen().digest()
  (tmp_path / "videos" / videos[0]).unlink()
  _, problems = scanned(chosen())
  assert {what for _, what in problems} == {"no such file"}
  first = tmp_path / "annotations" / next(iter(files))
  first.write_bytes(first.read_bytes() + b"\n")
  assert chosen().digest() != digest
  first.write_text("[3]")
  with pytest.raises(UserError, match=f"(--format={form}|no column)"):
    chosen().scan()


def test_the_protocol_1k_a_of_msrvtt(tmp_path):
  lists = {
    "MSRVTT_train.9k.csv": "video_id\nvideo0\nvideo2\n",
    "MSRVTT_JSFUSION_test.csv": "key,vid_key,video_id,sentence\n"
    "ret0,msr3,video3,a woman sings\n",
  }
  write(tmp_path, lists | {"MSRVTT_data.json": MSRVTT})
  write(tmp_path, {f"video{i}.mp4": b"film" for i in range(4)})
  found, problems = scanned(
    choose_source(f"{tmp_path}/MSRVTT_*", form="msrvtt")
  )
  assert not problems and found == {
    "train": [whole("video0.mp4", "c0", "c1"), whole("video2.mp4", "c4", "c5")],
    "test": [whole("video3.mp4", "a woman sings")],
  }


ROWS = [
  {"contentUrl": "a.mp4", "name": "a red ball", "n": 3},
  {"contentUrl": "b.mp4", "name": "a blue ball", "n": None},
  {"contentUrl": "c.mp4", "name": " ", "n": 1},
]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_with_other_names(suffix, tmp_path):
  write(tmp_path, {"a.mp4": b"film", "sub/b.mp4": b"film", "c.mp4": b"film"})
  path = tmp_path / f"rows.{suffix}"
  if suffix == "parquet":
    pq.write_table(pa.Table.from_pylist(ROWS), path)
  elif suffix == "jsonl":
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  else:
    mark = "," if suffix == "csv" else "\t"
    lines = [mark.join(("contentUrl", "name"))]
    lines += [mark.join((row["contentUrl"], row["name"])) for row in ROWS]
    path.write_text("\n".join(lines) + "\n")
  source = choose_source(str(path), columns="video:contentUrl,text:name")
  found, problems = scanned(source)
  assert found == {
    "train": [whole("a.mp4", "a red ball"), whole("b.mp4", "a blue ball")]
  }
  assert problems == [("c.mp4", "empty caption")]
  with pytest.raises(UserError, match=r"no column 'video'.*--columns="):
    choose_source(str(path)).scan()
  other = choose_source(str(path), columns="video:contentUrl,text:n")
  assert other.digest() != source.digest()


def make_tar(path, members):
  with tarfile.open(path, "w") as tar:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


def test_tars_of_webdataset_are_read_where_they_lie(tmp_path):
  for shard in range(2):
    make_tar(
      tmp_path / f"x-{shard:03d}.tar",
      {
        f"{shard}a.mp4": b"film a",
        f"{shard}a.txt": b"a cat\n",
        f"{shard}b.json": json.dumps(
          {"caption": "a dog", "label": "dog", "key": 3}
        ).encode(),
        f"{shard}b.mp4": b"film of b",
        f"{shard}c.mp4": b"no text",
        f"{shard}d.txt": b"no film",
      },
    )
  source = choose_source(f"{tmp_path}/x-{{000..001}}.tar")
  clips, problems = source.scan()
  assert [(clip.video, clip.label) for clip in clips] == [
    ("x-000.tar/0a.mp4", ""),
    ("x-000.tar/0b.mp4", "dog"),
    ("x-001.tar/1a.mp4", ""),
    ("x-001.tar/1b.mp4", "dog"),
  ]
  assert [c.text for clip in clips for c in clip.captions] == [
    *("a cat", "a dog", "a cat", "a dog")
  ]
  for clip in clips:
    data = Path(clip.media.path).read_bytes()
    part = data[clip.media.offset :][: clip.media.size]
    assert part == (b"film a" if clip.label == "" else b"film of b")
  assert [(p.path, p.what) for p in problems] == [
    (f"x-00{i}.tar/{i}c.mp4", "empty caption") for i in range(2)
  ]
  digest = source.digest()
  make_tar(tmp_path / "x-001.tar", {"1a.mp4": b"film a", "1a.txt": b"a cow"})
  assert choose_source(f"{tmp_path}/x-*.tar").digest() != digest


def test_a_tar_that_is_none_says_what_to_do(tmp_path):
  path = tmp_path / "x.tar"
  with tarfile.open(path, "w:gz") as tar:
    tar.add(__file__, "a.mp4")
  with pytest.raises(UserError, match="uncompressed.*gunzip"):
    choose_source(str(path)).scan()
  make_tar(path, {"a.mp4": bytes(20_000), "a.txt": b"a"})
  path.write_bytes(path.read_bytes()[:5_000])
  with pytest.raises(UserError, match="cannot be read as an uncompressed tar"):
    choose_source(str(path)).scan()


def test_a_folder_with_texts_beside_the_videos(tmp_path):
  write(
    tmp_path,
    {
      "train/a.mp4": b"film",
      "train/a.txt": "one caption\n\nanother\n",
      "test/b.webm": b"film",
      "test/b.json": {"captions": ["x", "y"], "start": 1, "end": 2.5},
      "more/c.mp4": b"film",
      "more/c.json": {"text": "z", "split": "val", "url": "?"},
      "d.mp4": b"film",
      "e.mp4": b"film",
      "e.json": "[]",
    },
  )
  found, problems = scanned(choose_source(str(tmp_path)))
  assert found == {
    "train": [whole("a.mp4", "one caption", "another")],
    "test": [("b.webm", 1.0, 2.5, "", "", ["x", "y"])],
    "val": [whole("c.mp4", "z")],
  }
  assert problems[0] == ("d.mp4", "empty caption")
  assert problems[1][1] == "malformed row"
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(UserError, match="holds no videos"):
    choose_source(str(empty)).scan()


def test_what_cannot_be_read_is_told_what_can(tmp_path):
  path = tmp_path / "clips.xlsx"
  path.write_bytes(b"x")
  with pytest.raises(UserError, match=r"\.csv.*\.parquet.*\.tar.*msrvtt"):
    choose_source(str(path))
  with pytest.raises(UserError, match="--columns has 'film:x'"):
    choose_source("a.csv", columns="film:x")
  with pytest.raises(UserError, match="no file is named"):
    choose_source(f"{tmp_path}/*.tar")
  broken = tmp_path / "a.parquet"
  broken.write_bytes(b"PAR1 and no more")
  with pytest.raises(UserError, match="no Parquet file"):
    choose_source(str(broken)).scan()


def test_names_are_written_out():
  def names(text):
    return [str(path) for path in expand(text)]

  assert names("a-{008..010}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
  assert names("{x,y}{1..2}") == ["x1", "x2", "y1", "y2"]
  assert names("a.csv,b-{1..2}.json") == ["a.csv", "b-1.json", "b-2.json"]


def test_a_name_that_two_files_have(tmp_path):
  write(tmp_path, {"1/a.mp4": b"1", "2/a.avi": b"2", "b.c.mp4": b"3"})
  find = Finder(tmp_path, allow_outside_root=False)
  assert find("b.c").path.endswith("b.c.mp4")
  with pytest.raises(BadRow) as error:
    find("a")
  assert error.value.args[0] == "several files"


def test_the_same_clips_as_a_tar_a_parquet_and_a_folder(shared_data, tmp_path):
  folder = shared_data / "droid"
  clips, problems = Manifest(str(folder / "manifest.csv")).scan()
  assert len(clips) == 1000 and not problems
  rows = [
    {
      "film": clip.video,
      "text": caption.text,
      **{c: getattr(clip, c) for c in ("id", "label", "split", "group")},
    }
    for clip in clips
    for caption in clip.captions
  ]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "droid.parquet")
  (tmp_path / "folder" / "clips").mkdir(parents=True)
  with tarfile.open(tmp_path / "droid.tar", "w") as tar:
    for clip in clips:
      document = {
        c: getattr(clip, c) for c in ("id", "label", "split", "group")
      }
      document["text"] = [caption.text for caption in clip.captions]
      text = json.dumps(document).encode()
      tar.add(clip.media.path, clip.video)
      info = tarfile.TarInfo(clip.video.rpartition(".")[0] + ".json")
      info.size = len(text)
      tar.addfile(info, io.BytesIO(text))
      video = tmp_path / "folder" / clip.video
      video.write_bytes(b"")  # a source opens none
      video.with_suffix(".json").write_bytes(text)

  def plain(clips):
    """All but where the bytes lie and the numbers of the captions."""
    return sorted(
      (
        clip.id, clip.video, clip.start, clip.end, clip.label, clip.split,
        clip.group, [(c.text, c.matched) for c in clip.captions],
      )
      for clip in clips
    )  # fmt: skip

  for names, more in (
    ("droid.tar", {}),
    ("droid.parquet", {"columns": "video:film", "root": str(folder)}),
    ("folder", {}),
  ):
    made, problems = choose_source(str(tmp_path / names), **more).scan()
    assert plain(made) == plain(clips) and not problems
  made, _ = choose_source(str(tmp_path / "droid.tar")).scan()
  assert dataclasses.astuple(made[0].media)[1] is not None
  by_id = {clip.id: clip for clip in clips}
  for clip in made[:20]:
    with open(clip.media.path, "rb") as file:
      file.seek(clip.media.offset)
      with open(by_id[clip.id].media.path, "rb") as whole_file:
        assert file.read(clip.media.size) == whole_file.read()
