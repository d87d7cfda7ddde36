"""manifest: rows to clips, and what is said of bad ones."""

import hashlib
import json

import pytest

from calince_jax.data.sources.item import Caption, Media
from calince_jax.data.sources.manifest import Manifest, read_manifest
from calince_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
  for name in ("a.mp4", "b.mp4", "naïve clip.mp4"):
    (tmp_path / name).write_bytes(b"x")
  return tmp_path


def write(folder, content, name="m.csv"):
  path = folder / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def read(folder, content, name="m.csv", **options):
  return read_manifest(write(folder, content, name), **options)


def test_several_captions_make_one_clip(folder):
  clips, problems = read(
    folder,
    "video,text,start,end,id,label,split,group,matched\n"
    "a.mp4,one,1,2.5,x,run,val,g,1\n"
    "b.mp4,two,,,,,,,\n"
    "a.mp4,three,1.0,2.5,x,run,val,g,0\n",
  )
  assert not problems
  first, second = clips
  assert first.captions == (Caption("one", 0, 1), Caption("three", 2, 0))
  assert (first.id, first.start, first.end) == ("x", 1.0, 2.5)
  assert (first.label, first.split, first.group) == ("run", "val", "g")
  assert first.media == Media(str(folder / "a.mp4"))
  assert second.captions == (Caption("two", 1, None),)
  assert (second.id, second.start, second.end) == ("b.mp4", None, None)
  assert (second.label, second.split, second.line) == ("", "train", 3)


def test_a_manifest_is_a_source(folder):
  path = write(folder, "video,text\na.mp4,x\nnone.mp4,y\n")
  other = folder.parent / "elsewhere"
  other.mkdir()
  source = Manifest(str(path))
  assert source.scan() == read_manifest(path)
  assert Manifest(str(path), str(other)).scan() == read_manifest(
    path, root=other
  )
  assert source.digest() == hashlib.sha256(path.read_bytes()).hexdigest()
  with pytest.raises(UserError, match="No such file"):
    Manifest(str(folder / "none.csv")).digest()


def test_all_kinds_of_file_say_the_same(folder):
  rows = [("a.mp4", "x, y", "1"), ("naïve clip.mp4", "日本", "")]
  csv = 'video,text,start\na.mp4,"x, y",1\nnaïve clip.mp4,日本,\n'
  tsv = "video\ttext\tstart\na.mp4\tx, y\t1\nnaïve clip.mp4\t日本\t\n"
  jsonl = "\n".join(
    json.dumps(dict(zip(("video", "text", "start"), row, strict=True)))
    for row in rows
  )
  expected = read(folder, csv)
  assert [c.captions[0].text for c in expected[0]] == ["x, y", "日本"]
  assert read(folder, tsv, "m.tsv") == expected
  numbers = [(c.id, c.start, c.captions) for c in expected[0]]
  again = read(folder, jsonl.replace('"1"', "1.0"), "m.jsonl")[0]
  assert [(c.id, c.start, c.captions) for c in again] == numbers


def test_bom_crlf_quotes_and_embedded_line_ends(folder):
  clips, problems = read(
    folder,
    b"\xef\xbb\xbfvideo,text\r\n"
    b'a.mp4,"he said ""go"",\r\nand went"\r\n'
    b"\r\n"
    b"b.mp4,\r\n",
  )
  assert clips[0].captions[0].text == 'he said "go",\r\nand went'
  assert "line 5" in problems[0].why  # after two lines of text, a blank one


@pytest.mark.parametrize(
  ("row", "what", "words"),
  [
    ("a.mp4,,,,,", "empty caption", "line 2"),
    ("a.mp4, \u200b ,,,,", "empty caption", "white space"),
    (",x,,,,", "no video", "names no video"),
    ("a.mp4,x,abc,,,", "bad number", "'abc'"),
    ("a.mp4,x,-1,,,", "bad number", "start"),
    ("a.mp4,x,nan,,,", "bad number", "start"),
    ("a.mp4,x,,1e999,,", "bad number", "end"),
    ("a.mp4,x,2,2,,", "end before start", "ends at 2 s"),
    ("a.mp4,x,,0,,", "end before start", "starts at 0 s"),
    ("a.mp4,x,,,../up,", "bad split name", "../up"),
    ("a.mp4,x,,,,maybe", "bad number", "matched"),
    ("gone.mp4,x,,,,", "no such file", "not there"),
    (".,x,,,,", "no such file", "not a plain file"),
    ("../outside.mp4,x,,,,", "outside the root", "leads out"),
    ("https://a.b/c.mp4,x,,,,", "an address", "address"),
    ("a.mp4,x", "malformed row", "2 fields"),
    ("a\0.mp4,x,,,,", "bad character", "NUL"),
    ("n" * 5000 + ",x,,,,", "no such file", "not there"),
    ("a.mp4," + "x" * 200_000 + ",,,,", "too long", "200,000 characters"),
    ("a.mp4,\u2800\ufe0f\u3164,,,,", "empty caption", "white space"),
    ("a.mp4,x,,,_,", "bad split name", "'_'"),
    ("a.mp4,x,,,all,", "bad split name", "'all'"),
    ("nai\u0308ve clip.mp4,x,,,,", "no such file", "(NFC)"),
    ("\ufeffa.mp4,x,,,,", "no such file", "byte-order mark"),
  ],
)
def test_a_bad_row_costs_the_row(folder, row, what, words):
  header = "video,text,start,end,split,matched\n"
  clips, problems = read(folder, header + row + "\nb.mp4,good,,,,\n")
  assert [clip.id for clip in clips] == ["b.mp4"]
  assert clips[0].captions[0].pair_index == 0
  assert len(problems) == 1
  assert problems[0].what == what
  assert words in problems[0].why
  assert problems[0].what_to_do


def test_a_missing_video_is_one_problem_for_all_its_captions(folder):
  clips, problems = read(folder, "video,text\ngone.mp4,x\na.mp4,y\ngone.mp4,z")
  assert len(problems) == 1
  assert clips[0].captions == (Caption("y", 0, None),)


def test_rows_of_a_clip_must_agree(folder):
  clips, problems = read(
    folder, "video,text,split\na.mp4,x,train\na.mp4,y,test\n"
  )
  assert problems[0].what == "conflicting rows"
  assert [caption.text for caption in clips[0].captions] == ["x"]


def test_ids_are_unique(folder):
  clips, problems = read(
    folder, "video,text,id,start\na.mp4,x,7,\nb.mp4,y,7,\na.mp4,z,,1\n"
  )
  assert [clip.id for clip in clips] == ["7", "a.mp4#1.0-"]
  assert problems[0].what == "duplicate id"
  assert "line 2" in problems[0].why


def test_a_link_out_of_the_root_counts_as_outside(folder, tmp_path_factory):
  other = tmp_path_factory.mktemp("other") / "c.mp4"
  other.write_bytes(b"x")
  (folder / "link.mp4").symlink_to(other)
  content = f"video,text\nlink.mp4,x\n{other},y\n"
  clips, problems = read(folder, content)
  assert not clips
  assert {p.what for p in problems} == {"outside the root"}
  clips, problems = read(folder, content, allow_outside_root=True)
  assert [clip.media.path for clip in clips] == [str(other)] * 2
  clips, _ = read(folder, "video,text\nc.mp4,x\n", root=other.parent)
  assert clips[0].media.path == str(other)


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("m.csv", b"", "empty"),
    ("m.csv", b"\n \n", "empty"),
    ("m.csv", b"video,text\n", "no rows"),
    ("m.csv", b"video,caption\na.mp4,x\n", "no column 'text'"),
    ("m.csv", b"file,text\na.mp4,x\n", "no column 'video'"),
    ("m.csv", b"video,text,text\na.mp4,x,y\n", "twice"),
    ("m.csv", b"video,text\na.mp4,x\na.mp4,caf\xe9\n", "line 3 is not UTF-8"),
    ("m.csv", 'video,text\na.mp4,x\na.mp4,"y'.encode("utf-16"), "UTF-16"),
    ("m.csv", b'video,text\na.mp4,"x\nb.mp4,y\n', "line 2 is not well-formed"),
    ("m.csv", b"", "is empty"),
    ("m.jsonl", b'{"video": "a.mp4"}\n', "no column 'text'"),
    ("m.xlsx", b"video,text\n", ".xlsx"),
    ("m", b"video,text\n", "without extension"),
  ],
)
def test_a_bad_file_is_one_clear_error(folder, name, content, words):
  with pytest.raises(UserError) as error:
    read(folder, content, name)
  assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_a_manifest_that_is_not_there(folder):
  with pytest.raises(UserError, match="No such file"):
    read_manifest(folder / "none.csv")


@pytest.mark.parametrize(
  "line",
  [
    "not json",
    "[1]",
    '{"text": "x"}',
    '{"video": "a.mp4", "text": ["x"]}',
    '{"video": "a.mp4", "text": "\\ud800"}',
    '{"video": {}, "text": "x"}',
    "[" * 100_000,
  ],
)
def test_a_bad_line_of_json_costs_the_line(folder, line):
  good = '{"video": "a.mp4", "text": "x", "matched": true}\n'
  clips, problems = read(folder, good + line + "\n", "m.jsonl")
  assert clips[0].captions == (Caption("x", 0, 1),)
  assert len(problems) == 1
  assert "line 2" in problems[0].why


def test_two_ways_to_write_a_name_are_one_clip(folder):
  clips, problems = read(
    folder, "video,text\na.mp4,x\n./a.mp4,y\n././a.mp4,z\n"
  )
  assert not problems
  assert [len(clip.captions) for clip in clips] == [3]


def test_a_second_byte_order_mark_is_no_part_of_the_header(folder):
  clips, problems = read(folder, "\ufeff\ufeffvideo,text\na.mp4,x\n")
  assert [clip.id for clip in clips] == ["a.mp4"] and not problems


def test_true_is_no_caption(folder):
  rows = [
    {"video": "a.mp4", "text": True},
    {"video": "b.mp4", "text": "x", "matched": True},
  ]
  content = "\n".join(map(json.dumps, rows))
  clips, (problem,) = read(folder, content, "m.jsonl")
  assert [clip.id for clip in clips] == ["b.mp4"]
  assert clips[0].captions[0].matched == 1
  assert "text is true, not a text" in problem.why


def test_a_folder_is_no_manifest(folder):
  with pytest.raises(UserError, match="is a folder.*columns video and text"):
    Manifest(str(folder)).digest()
