"""prepare: from a manifest to a data set, whatever happens in between."""

import csv
import functools
import io
import json
import pathlib
import signal
import subprocess
import sys
import time

import av
import forked
import numpy as np
import pytest
from conftest import LISTENING
from PIL import Image

from calince_jax.data.records.parts import ALL, claim
from calince_jax.data.records.reader import ClipReader, read_info
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError
from calince_jax.prepare import Options, prepare

ROOT = pathlib.Path(__file__).parents[1]
COUNT = 24


def write_video(path, levels):
  with av.open(str(path), "w") as container:
    options = {"preset": "ultrafast"}
    stream = container.add_stream("libx264", rate=8, options=options)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for level in levels:
      image = np.full((48, 64, 3), level, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
    container.mux(stream.encode())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """COUNT good clips of 8 frames, one grey each; two captions for clip 0."""
  folder = tmp_path_factory.mktemp("corpus")
  rows = [["video", "text", "label", "split", "matched"]]
  for k in range(COUNT):
    write_video(folder / f"{k}.mp4", [10 * k] * 8)
    split = "test" if k % 4 == 3 else "train"
    word = "dark" if k < COUNT // 2 else "light"
    rows.append([f"{k}.mp4", f"a {word} wall {k}", word, split, k % 2])
  rows.append(["0.mp4", "nothing moves", "dark", "train", ""])
  write_rows(folder / "clips.csv", rows)
  return folder


def write_rows(path, rows):
  with open(path, "w", newline="") as file:
    csv.writer(file).writerows(rows)
  return path


def read_ledger(out):
  with open(out / "ledger.csv", newline="") as file:
    return list(csv.DictReader(file))


def command(*arguments):
  return [sys.executable, "-m", "calince_jax.prepare", *map(str, arguments)]


@pytest.fixture(scope="module")
def run():
  """Runs prepare with these arguments, as a process."""
  return functools.partial(forked.run, "calince_jax.prepare")


def contents(folder):
  return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def options(corpus, out, **others):
  path = str(corpus / "clips.csv")
  return Options(manifest=path, out=str(out), num_workers=1, **others)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
  """The corpus prepared without interruption, in shards of 2 clips."""
  out = tmp_path_factory.mktemp("whole") / "set"
  prepare(options(corpus, out, clips_per_shard=2))
  return out


def test_every_clip_arrives(whole):
  info = read_info(whole)
  assert info.splits["train"] == {"clips": 18, "pairs": 19}
  assert info.splits["test"] == {"clips": 6, "pairs": 6}
  assert (info.num_pairs, info.labels) == (25, ["dark", "light"])
  assert (info.frame_rate, info.short_side) == (8.0, 128)
  seen = {}
  for split in info.splits:
    reader = ClipReader(whole, split)
    for record in reader.read(range(len(reader))):
      k = int(record["id"].removesuffix(".mp4"))
      assert split == record["split"] == ("test" if k % 4 == 3 else "train")
      assert record["texts"][0].endswith(f" wall {k}")
      assert record["label"] == ("dark" if k < 12 else "light")
      assert len(record["frames"]) == 8 and record["duration"] == 1.0
      image = np.asarray(Image.open(io.BytesIO(record["frames"][3])))
      assert image.shape == (record["height"], record["width"], 3)
      assert abs(image.mean() - 10 * k) < 3
      seen |= dict(zip(record["pair_indices"], record["matched"], strict=True))
      if k == 0:
        assert record["texts"][1:] == ["nothing moves"]
  assert seen == {k: k % 2 for k in range(24)} | {24: -1}
  assert read_ledger(whole) == []
  assert not (whole / ".prepare").exists()


def test_the_tokenizer_learns_from_training_captions_only(corpus, tmp_path):
  rows = [["video", "text", "split"]]
  rows += [["0.mp4", "aaa bbb", "train"], ["3.mp4", "zzz", "test"]]
  path = write_rows(corpus / "split.csv", rows)
  prepare(Options(manifest=str(path), out=str(tmp_path / "a")))
  ids, _ = Tokenizer(tmp_path / "a" / "tokenizer.model").encode(["b", "z"], 8)
  assert 1 not in ids[0] and 1 in ids[1]
  # With no training split, all captions are learned from.
  path = write_rows(corpus / "split.csv", [rows[0], rows[2]])
  prepare(Options(manifest=str(path), out=str(tmp_path / "b")))
  ids, _ = Tokenizer(tmp_path / "b" / "tokenizer.model").encode(["z"], 8)
  assert 1 not in ids


def test_a_given_tokenizer_is_used(corpus, whole, tmp_path):
  model = whole / "tokenizer.model"
  prepare(options(corpus, tmp_path / "a", tokenizer=str(model)))
  assert (tmp_path / "a/tokenizer.model").read_bytes() == model.read_bytes()
  with pytest.raises(UserError, match="not a SentencePiece model"):
    bad = str(corpus / "0.mp4")
    prepare(options(corpus, tmp_path / "b", tokenizer=bad))


def test_options_change_the_frames(corpus, tmp_path):
  small = options(
    corpus, tmp_path / "a", frame_rate=4.0, short_side=24, max_frames=3
  )
  info = prepare(small)
  assert (info.frame_rate, info.short_side) == (4.0, 24)
  record = ClipReader(tmp_path / "a", "train").read([0])[0]
  assert (record["width"], record["height"]) == (32, 24)
  assert len(record["frames"]) == 3 and record["duration"] == 0.75


def test_many_workers_give_the_bytes_of_one(corpus, whole, tmp_path):
  many = Options(
    manifest=str(corpus / "clips.csv"),
    out=str(tmp_path / "set"),
    clips_per_shard=2,
    num_workers=3,
  )
  prepare(many)
  assert contents(tmp_path / "set") == contents(whole)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_prepare_resumes_to_the_same_bytes(
  corpus, whole, tmp_path, how
):
  out = tmp_path / "set"
  arguments = command(
    f"--manifest={corpus / 'clips.csv'}",
    f"--out={out}",
    "--clips_per_shard=2",
    "--num_workers=1",
  )
  process = subprocess.Popen(
    [*LISTENING, *arguments], cwd=ROOT, stderr=subprocess.PIPE
  )
  notes = out / ".prepare"
  deadline = time.monotonic() + 60
  while not (notes.exists() and len(list(notes.glob("clips-*.json"))) > 2):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.001)
  process.send_signal(how)
  printed = process.communicate(timeout=30)[1].decode()
  assert process.returncode != 0
  if how == signal.SIGINT:
    assert "the same command resumes" in printed
    assert "Traceback" not in printed
  assert not (out / "dataset.json").exists()
  done = next(notes.glob("clips-*.json"))
  shard = out / done.name.removesuffix(".json")
  before = shard.stat().st_mtime_ns
  prepare(options(corpus, out, clips_per_shard=2))
  assert shard.stat().st_mtime_ns == before  # it was not made again
  assert contents(out) == contents(whole)


def test_a_finished_set_is_reused(corpus, whole, capsys):
  before = {p: p.stat().st_mtime_ns for p in whole.iterdir()}
  prepare(options(corpus, whole, clips_per_shard=2))
  assert "is reused" in capsys.readouterr().out
  assert {p: p.stat().st_mtime_ns for p in whole.iterdir()} == before


@pytest.mark.parametrize(
  ("change", "word"),
  [
    ({"frame_rate": 4.0}, "frame_rate"),
    ({"vocab_size": 50}, "vocab_size"),
    ({"manifest": "other.csv"}, "manifest"),
  ],
)
def test_another_set_is_not_overwritten(corpus, whole, change, word):
  before = contents(whole)
  if "manifest" in change:
    path = corpus / change["manifest"]
    change = {"manifest": str(path)}
    write_rows(path, [["video", "text"], ["0.mp4", "x"]])
  arguments = {"manifest": str(corpus / "clips.csv"), "clips_per_shard": 2}
  with pytest.raises(UserError, match=f"another .*{word}.*delete it"):
    prepare(Options(out=str(whole), **arguments | change))
  assert contents(whole) == before


def test_a_folder_of_other_things_is_left_alone(corpus, tmp_path):
  (tmp_path / "thesis.txt").write_text("all of it")
  with pytest.raises(UserError, match="neither empty nor a prepared data set"):
    prepare(options(corpus, tmp_path))
  assert contents(tmp_path) == {"thesis.txt": b"all of it"}


# ------------------------------------------------------------ bad input


@pytest.fixture
def bad_corpus(corpus):
  """20 good clips and 4 bad ones, one for each kind of fault."""
  (corpus / "page.mp4").write_text("<html>sign in</html>")
  (corpus / "empty.mp4").write_bytes(b"")
  rows = [["video", "text", "split", "start"]]
  rows += [[f"{k}.mp4", f"text {k}", "train", ""] for k in range(20)]
  rows += [["page.mp4", "x", "train", ""], ["empty.mp4", "x", "val", ""]]
  rows += [["gone.mp4", "x", "train", ""], ["0.mp4", "x", "train", "77"]]
  return write_rows(corpus / "bad.csv", rows)


def test_what_is_unusable_is_in_the_ledger(bad_corpus, tmp_path, capsys):
  out = tmp_path / "set"
  prepare(Options(str(bad_corpus), str(out), max_bad_fraction=0.2))
  rows = read_ledger(out)
  assert [(row["path"], row["what"]) for row in rows] == [
    ("0.mp4 [77- s]", "outside the video"),
    ("empty.mp4", "empty file"),
    ("gone.mp4", "no such file"),
    ("page.mp4", "not a video"),
  ]
  assert all(row["why"] and row["what_to_do"] for row in rows)
  info = read_info(out)
  assert info.splits == {"train": {"clips": 20, "pairs": 20}}
  assert info.num_pairs == 23  # indices of unusable clips are given out too
  assert not list(out.glob("clips-val*"))
  said = capsys.readouterr().out
  assert "no clip of split 'val' can be used" in said
  assert "1 rows of the manifest are unusable" in said


def test_too_many_unusable_clips_stop_it(run, bad_corpus, tmp_path):
  arguments = [f"--manifest={bad_corpus}", f"--out={tmp_path / 'set'}"]
  arguments += ["--clips_per_shard=4"]
  stopped = run(*arguments)
  assert stopped.returncode == 2
  assert "Traceback" not in stopped.stderr
  line = stopped.stderr.strip().split("\n")[-1]
  assert line.startswith("error: 3 of 24 clips cannot be used so far")
  assert "--max_bad_fraction=0.1" in line and "1 x no such file" in line
  assert "ledger.csv" in line
  assert len(read_ledger(tmp_path / "set")) == 3
  more = Options(
    str(bad_corpus),
    str(tmp_path / "set"),
    clips_per_shard=4,
    max_bad_fraction=0.2,
  )
  prepare(more)
  assert len(read_ledger(tmp_path / "set")) == 4


def test_mended_rows_before_any_shard_start_over(corpus, tmp_path):
  path = write_rows(corpus / "mend.csv", [["video", "text"], ["gone.mp4", "x"]])
  with pytest.raises(UserError, match="more than --max_bad_fraction"):
    prepare(Options(str(path), str(tmp_path / "set")))
  write_rows(path, [["video", "text"], ["0.mp4", "x"]])
  info = prepare(Options(str(path), str(tmp_path / "set")))
  assert info.splits == {"train": {"clips": 1, "pairs": 1}}


def test_nothing_usable_is_an_error(corpus, tmp_path):
  (corpus / "none.mp4").write_bytes(b"")
  path = write_rows(corpus / "none.csv", [["video", "text"], ["none.mp4", "x"]])
  with pytest.raises(UserError, match="no clip can be used"):
    prepare(Options(str(path), str(tmp_path / "set"), max_bad_fraction=1.0))
  assert not (tmp_path / "set" / "dataset.json").exists()


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("m.csv", b"", "is empty"),
    ("m.csv", b"video,caption\n0.mp4,x\n", "no column 'text'"),
    ("m.csv", b"video,text\n0.mp4,\xff\n", "line 2 is not UTF-8"),
    ("m.csv", b"video,text\n0.mp4,\n", "1 x empty caption"),
    ("m.csv", b"video,text\ngone.mp4,x\n", "1 x no such file"),
    ("m.csv", b"video,text,start,end\n0.mp4,x,2,1\n", "1 x end before start"),
    ("m.doc", b"video,text\n0.mp4,x\n", ".doc"),
    (None, b"", "No such file"),
  ],
)
def test_wrong_input_gives_one_message(
  run, corpus, tmp_path, name, content, words
):
  if name:
    (tmp_path / name).write_bytes(content)
  result = run(
    f"--manifest={tmp_path / (name or 'none.csv')}",
    f"--root={corpus}",
    f"--out={tmp_path / 'set'}",
  )
  assert result.returncode == 2
  assert result.stderr.count("error: ") == 1 and result.stdout == ""
  assert len(result.stderr.strip().split("\n")) == 1
  assert words in result.stderr


@pytest.mark.parametrize(
  "argument",
  [
    "--short_side=0",
    "--max_bad_fraction=2",
    "--frame_rat=8",
    "--frame_rate=nan",
    "--time_limit=inf",
  ],
)
def test_wrong_flags_are_named(run, corpus, tmp_path, argument):
  result = run(
    f"--manifest={corpus / 'clips.csv'}", f"--out={tmp_path / 'set'}", argument
  )
  assert result.returncode == 2
  assert argument.partition("=")[0].lstrip("-") in result.stderr
  assert len(result.stderr.splitlines()) == 1
  assert "Traceback" not in result.stderr
  assert not (tmp_path / "set").exists()


def test_two_at_a_time_do_not_mix(corpus, tmp_path):
  with (
    claim(tmp_path / "set", ALL),
    pytest.raises(UserError, match="another prepare is at work"),
  ):
    prepare(options(corpus, tmp_path / "set"))
  prepare(options(corpus, tmp_path / "set"))


# ------------------------------------------------------------ real files


def test_wild_files(shared_data, tmp_path):
  manifest = shared_data / "hard" / "manifest.csv"
  out = tmp_path / "set"
  wild = Options(
    str(manifest), str(out), max_frames=40, max_bad_fraction=0.9, num_workers=2
  )
  info = prepare(wild)
  with open(manifest, newline="") as file:
    known = {row["video"]: row["pyav"] for row in csv.DictReader(file)}
  ledger = {row["path"]: row for row in read_ledger(out)}
  assert info.splits["train"]["clips"] + len(ledger) == len(known)
  for video, result in known.items():
    if result == "no video stream":
      assert ledger[video]["what"] in ("no video stream", "not a video")
    elif result != "decodes":
      assert video in ledger
  # Of those that a plain loop decodes, only a picture of 144 million pixels.
  decodes = {video for video, result in known.items() if result == "decodes"}
  assert decodes & ledger.keys() == {"androidx/webp/black_large.webp"}
  assert not any("unforeseen" in row["why"] for row in ledger.values())


def test_real_clips(shared_data, tmp_path):
  source = shared_data / "droid" / "manifest.csv"
  lines = source.read_text().split("\n")[:13]
  path = tmp_path / "few.csv"
  path.write_text("\n".join(lines))
  out = tmp_path / "set"
  prepare(Options(str(path), str(out), root=str(source.parent)))
  assert read_ledger(out) == []
  content = json.loads((out / "dataset.json").read_text())
  assert content["num_pairs"] == 12
  for record in ClipReader(out, "train").read(range(12)):
    assert (record["width"], record["height"]) == (160, 90)
    with av.open(str(source.parent / record["id"])) as container:
      count = sum(1 for _ in container.decode(video=0))
    assert len(record["frames"]) == count  # the files have 8 frames a second
