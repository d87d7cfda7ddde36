"""Files of lines are whole, whenever the run was killed."""

import os

import pytest
from etils import epath

from calince_jax import files
from calince_jax.errors import UserError


def test_lines_are_kept_and_a_torn_one_dropped(tmp_path):
  path = epath.Path(tmp_path / "deep" / "lines")
  files.LineFile(path).append("one")
  with path.open("a") as file:
    file.write("tor")
  files.LineFile(path).append("two")
  assert path.read_text() == "one\ntwo\n"
  files.LineFile(path, lambda line: line != "one").append("three")
  assert files.read_lines(path) == ["two", "three"]


def test_a_write_that_fails_leaves_the_old(tmp_path, monkeypatch):
  path = epath.Path(tmp_path / "file")
  files.write_atomic(path, "old")

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space"):
    files.write_atomic(path, "new and longer")
  assert path.read_text() == "old"
  monkeypatch.undo()
  files.write_atomic(path, b"new")
  assert path.read_text() == "new"
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_appears_when_its_block_has_ended(tmp_path):
  path = tmp_path / "file"
  with files.atomic_file(path) as partial:
    partial.write_text("new")
    assert not path.exists()
  assert path.read_text() == "new"
  with pytest.raises(ValueError), files.atomic_file(path) as partial:
    partial.write_text("half")
    raise ValueError
  assert path.read_text() == "new"
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_appears_when_its_block_has_ended(tmp_path):
  path = tmp_path / "deep" / "folder"
  (tmp_path / "deep" / "folder.partial").mkdir(parents=True)
  (tmp_path / "deep" / "folder.partial" / "of_a_killed_run").touch()
  with files.atomic_folder(path) as partial:
    (partial / "file").touch()
    assert not path.exists()
  assert [p.name for p in path.iterdir()] == ["file"]
  with pytest.raises(ValueError), files.atomic_folder(path / "more"):
    raise ValueError
  assert [p.name for p in path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link"])
def test_what_is_no_plain_file_is_not_replaced(tmp_path, kind):
  path = tmp_path / "out"
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "folder":
    path.mkdir()
  else:
    path.symlink_to("/dev/null" if kind == "device" else "nowhere")
  before = os.lstat(path)
  with pytest.raises(UserError, match="not a plain file|link to nowhere"):
    files.write_atomic(path, "new")
  assert os.lstat(path).st_ino == before.st_ino
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_nothing_is_written_through_a_link_that_was_put_there(tmp_path):
  other = tmp_path / "other"
  other.write_text("old")
  (tmp_path / "out.partial").symlink_to(other)
  with pytest.raises(UserError, match="out.partial is not a plain file"):
    files.write_atomic(tmp_path / "out", "new")
  assert other.read_text() == "old"


def test_a_link_to_a_file_stays_a_link(tmp_path):
  (tmp_path / "far").write_text("old")
  (tmp_path / "near").symlink_to("far")
  files.write_atomic(tmp_path / "near", "new")
  assert (tmp_path / "near").is_symlink()
  assert (tmp_path / "far").read_text() == "new"


def test_two_do_not_write_one_file_at_once(tmp_path):
  path = tmp_path / "out"
  with files.atomic_file(path) as partial:
    partial.write_text("first")
    with pytest.raises(UserError, match="another process is writing"):
      files.write_atomic(path, "second")
  assert path.read_text() == "first"


def test_what_a_killed_process_left_is_written_over(tmp_path):
  (tmp_path / "out.partial").write_text("a long half of something")
  files.write_atomic(tmp_path / "out", "new")
  assert (tmp_path / "out").read_text() == "new"
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path, name):
  files.write_atomic(tmp_path / name, "new")
  assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_that_fails_leaves_nothing(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError), files.atomic_folder(tmp_path / "out") as partial:
    (partial / "file").write_text("x")
  assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
  "path, bucket, words",
  [
    ("", True, "--out is empty"),
    (" ", True, "--out is empty"),
    ("ftp://host/x", True, "must be a local path or gs://"),
    ("gs://bucket/x", False, "must be a local path, not gs://"),
    ("a\0b", True, "NUL"),
  ],
)
def test_places_that_cannot_be_written(path, bucket, words):
  with pytest.raises(UserError, match=words):
    files.check_place("--out", path, bucket=bucket)


def test_places_that_can():
  files.check_place("--out", "gs://bucket/x", bucket=True)
  files.check_place("--out", "runs/a://b".replace("://", ":"), bucket=False)


def test_what_others_wrote_is_opened_or_refused(tmp_path):
  path = tmp_path / "file.json"
  for content, words in (
    (b"{", "is damaged: it is not JSON"),
    (b"[]", "is damaged: it is not a JSON object"),
    (b"[" * 100_000, "is damaged: it is not JSON"),
    (b"{}\n\xff", "line 2 is not UTF-8"),
  ):
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
      files.read_json(path)
  path.write_bytes(b" " * 11)
  with pytest.raises(UserError, match="has 11 bytes, more than 10"):
    files.read_file(path, most=10)
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(UserError, match="not a plain file"):
    files.read_json(path)
  with pytest.raises(UserError, match="not a plain file"):
    files.LineFile(epath.Path(path))


def test_controls_are_written_as_escapes():
  said = files.without_controls("a\x1b[2J\x9b\x00\tb\nc é \U0001f469\u200d")
  assert said == "a\\x1b[2J\\x9b\\x00\tb\nc é \U0001f469\u200d"
