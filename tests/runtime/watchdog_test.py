"""A stalled run is detected, and its stacks are written."""

import threading
import time

import pytest

from calince_jax.runtime.watchdog import Watchdog


def wait_for(happens, seconds=20):
  end = time.monotonic() + seconds
  while not happens():
    assert time.monotonic() < end, "it did not happen"
    time.sleep(0.01)


def test_a_stall_writes_every_stack_and_then_ends_the_process(tmp_path, capfd):
  path, messages, free = tmp_path / "run" / "stall.txt", [], threading.Event()

  def a_function_that_hangs():
    free.wait()

  thread = threading.Thread(target=a_function_that_hangs)
  thread.start()
  try:
    with Watchdog(str(path), 0.3, end=messages.append) as dog:
      dog.progress("step 12")
      wait_for(path.exists)
      assert not messages
      wait_for(lambda: messages)
  finally:
    free.set()
    thread.join()
  text = path.read_text()
  assert "the last progress was step 12" in text.splitlines()[0]
  assert "a_function_that_hangs" in text
  assert "wait_for" in text  # this thread
  assert "step 12" in messages[0] and "stall_seconds" in messages[0]
  assert "stall.txt has the stack" in capfd.readouterr().err


@pytest.mark.parametrize("seconds, progress", [(0.0, False), (0.5, True)])
def test_progress_or_zero_seconds_writes_nothing(tmp_path, seconds, progress):
  path, messages = tmp_path / "stall.txt", []
  with Watchdog(str(path), seconds, end=messages.append) as dog:
    for i in range(30):
      if progress:
        dog.progress(f"step {i}")
      time.sleep(0.05)
  assert not messages and not path.exists()
