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
  files.write_whole(path, "old")

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space"):
    files.write_whole(path, "new and longer")
  assert path.read_text() == "old"
  monkeypatch.undo()
  files.write_whole(path, b"new")
  assert path.read_text() == "new"
  assert [p.name for p in tmp_path.iterdir()] == ["file"]
