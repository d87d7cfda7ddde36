"""A run that stands still is seen, and says where."""

import threading
import time

import pytest

from calince_jax.runtime.watchdog import Watchdog


def wait_for(happens, seconds=20):
  end = time.monotonic() + seconds
  while not happens():
    assert time.monotonic() < end, "it did not happen"
    time.sleep(0.01)


def test_where_every_thread_stands_is_written_and_then_it_ends(tmp_path, capfd):
  path, said, free = tmp_path / "run" / "stall.txt", [], threading.Event()

  def a_function_that_hangs():
    free.wait()

  thread = threading.Thread(target=a_function_that_hangs)
  thread.start()
  try:
    with Watchdog(str(path), 0.3, end=said.append) as dog:
      dog.progress("step 12")
      wait_for(path.exists)
      assert not said
      wait_for(lambda: said)
  finally:
    free.set()
    thread.join()
  text = path.read_text()
  assert "the last was step 12" in text.splitlines()[0]
  assert "a_function_that_hangs" in text
  assert "wait_for" in text  # this thread
  assert "step 12" in said[0] and "stall_seconds" in said[0]
  assert "stall.txt says where" in capfd.readouterr().err


@pytest.mark.parametrize("seconds, progress", [(0.0, False), (0.5, True)])
def test_progress_or_zero_keeps_it_quiet(tmp_path, seconds, progress):
  path, said = tmp_path / "stall.txt", []
  with Watchdog(str(path), seconds, end=said.append) as dog:
    for i in range(30):
      if progress:
        dog.progress(f"step {i}")
      time.sleep(0.05)
  assert not said and not path.exists()
