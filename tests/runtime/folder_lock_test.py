"""One process at a time in a folder; what a killed one left needs no hand."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from etils import epath

from calince_jax.errors import UserError
from calince_jax.runtime import folder_lock

HOLD = """
import sys, time
from calince_jax.runtime import folder_lock
with folder_lock.held(sys.argv[1], "another run", print):
  print("held", flush=True)
  time.sleep(60)
"""


def lost(message):
  raise AssertionError(message)


def held(folder, on_loss=lost):
  return folder_lock.held(folder, "another run", on_loss)


@pytest.fixture
def holder(tmp_path):
  """A process that holds the folder."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE
  )
  assert process.stdout.readline() == b"held\n"
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_a_second_one_is_refused_by_name_and_a_killed_one_needs_no_hand(
  tmp_path, holder
):
  with pytest.raises(UserError) as error, held(tmp_path):
    pass
  for words in (
    "another run is at work",
    f"process {holder.pid} on",
    "since 2",
  ):
    assert words in str(error.value)
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert (tmp_path / "lock.json").read_bytes()  # it still names the killed one
  with held(tmp_path):
    pass
  assert (tmp_path / "lock.json").read_bytes() == b""
  with held(tmp_path):
    pass


def test_a_holder_elsewhere_lives_as_long_as_it_beats(tmp_path, monkeypatch):
  monkeypatch.setattr(folder_lock, "STALE", 0.5)
  monkeypatch.setattr(folder_lock, "BEAT", 0.05)
  path = tmp_path / "lock.json"
  other = vars(folder_lock.this_process()) | {"host": "far", "kernel": "other"}
  done = threading.Event()

  def beat():
    count = 0
    while not done.wait(0.05):
      count += 1
      path.write_text(json.dumps(other | {"beat": count}))

  thread = threading.Thread(target=beat)
  path.write_text(json.dumps(other | {"beat": 0}))
  thread.start()
  with pytest.raises(UserError, match="on far"), held(tmp_path):
    pass
  done.set()
  thread.join()
  with held(tmp_path):  # no beat for STALE seconds: it is dead
    assert json.loads(path.read_bytes())["process"] == os.getpid()


def test_a_holder_that_was_taken_for_dead_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(folder_lock, "BEAT", 0.05)
  said, heard = [], threading.Event()

  def on_loss(message):
    said.append(message)
    heard.set()

  with held(tmp_path, on_loss):
    other = vars(folder_lock.this_process()) | {"host": "far"}
    (tmp_path / "lock.json").write_text(json.dumps(other | {"beat": 0}))
    assert heard.wait(20)
  assert "was taken by" in said[0] and "on far" in said[0]
  assert json.loads((tmp_path / "lock.json").read_bytes())["host"] == "far"


def test_without_the_kernels_lock_the_last_to_write_has_it(
  tmp_path, monkeypatch
):
  """As in a bucket, and on disks that know no locks."""

  def unknown(*_):
    raise OSError(38, "Function not implemented")

  monkeypatch.setattr(folder_lock.fcntl, "flock", unknown)
  monkeypatch.setattr(folder_lock, "BEAT", 0.2)
  with held(tmp_path):
    words = f"process {os.getpid()} on"
    with pytest.raises(UserError, match=words), held(tmp_path):
      pass
  # One of two that see no holder at the same time.
  me, other = folder_lock.this_process(), folder_lock.this_process()
  lock = folder_lock._Lock(epath.Path(tmp_path / "lock.json"))
  monkeypatch.setattr(folder_lock.time, "sleep", lambda _: lock.write(other, 0))
  with pytest.raises(UserError, match="has just been started"):
    lock.take(me, "another run", "folder")
  lock.close()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": 1}', b"\xff" * 99])
def test_a_damaged_lock_holds_nobody_up(tmp_path, content):
  (tmp_path / "lock.json").write_bytes(content)
  with held(tmp_path):
    pass
