"""The first SIGTERM is a request; the second ends the process."""

import os
import signal
import subprocess
import sys
import time

from calince_jax.runtime.preemption import Preemption


def test_first_sigterm_is_a_request_and_the_old_handler_is_restored():
  before = signal.getsignal(signal.SIGTERM)
  with Preemption().listening() as preemption:
    assert not preemption.requested
    os.kill(os.getpid(), signal.SIGTERM)
    end = time.monotonic() + 10
    while not preemption.requested and time.monotonic() < end:
      time.sleep(0.01)
    assert preemption.requested
  assert signal.getsignal(signal.SIGTERM) == before


STUCK = """
import ctypes, os, signal, time
from calince_jax.runtime.preemption import Preemption
with Preemption().listening() as preemption:
  os.kill(os.getpid(), signal.SIGTERM)
  while not preemption.requested:
    time.sleep(0.01)
  print("stuck", flush=True)
  # In C, which no Python handler interrupts.
  for _ in range(60):
    ctypes.CDLL(None).sleep(60)
"""


def test_second_sigterm_ends_even_a_process_that_is_stuck():
  process = subprocess.Popen(
    [sys.executable, "-c", STUCK],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
  finally:
    process.kill()
  assert process.returncode == 128 + signal.SIGTERM
  assert "saving at the end of this step" in err and "again" in err


def test_an_interrupt_is_a_request_as_well():
  before = signal.getsignal(signal.SIGINT)
  with Preemption().listening() as preemption:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
      if preemption.requested:
        break
      time.sleep(0.01)
  assert preemption.requested and preemption.reason == "Ctrl-C"
  assert signal.getsignal(signal.SIGINT) == before
