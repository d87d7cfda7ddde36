"""Files of lines are whole, whenever the run was killed."""

import os

import pytest
from etils import epath

from calince_jax import files


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
