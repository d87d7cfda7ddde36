"""Waiting for data counts only while the devices are idle."""

import threading
import time

import jax.numpy as jnp
import pytest

from calince_jax.training import wall_time
from calince_jax.training.wall_time import LOST_TO, WallTime


@pytest.fixture
def clock(monkeypatch):
  now = [50.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  return now


def test_data_that_comes_while_a_step_is_computed_costs_nothing(
  clock, monkeypatch
):
  done = threading.Event()

  def ready_at(result):
    assert done.wait(30)
    return clock[0]

  monkeypatch.setattr(wall_time, "_ready_at", ready_at)
  times = WallTime()
  times.dispatched(jnp.zeros(()))
  with times.waiting_for_data():
    clock[0] += 3
  assert times.seconds("data") == 0
  # The step ends two seconds before the next batch is there.
  times.dispatched(jnp.zeros(()))
  with times.waiting_for_data():
    clock[0] += 3
    done.set()
    times._idle_since.result()
    clock[0] += 2
  assert times.seconds("data") == 2


def test_the_first_batch_and_an_idle_device_cost_all_of_the_wait(clock):
  times = WallTime()
  with times.waiting_for_data():
    clock[0] += 4
  times.dispatched(jnp.zeros(()))
  times._idle_since.result()
  clock[0] += 1
  with times.waiting_for_data():
    clock[0] += 2
  assert times.seconds("data") == 6


def test_the_shares_are_one_in_all_and_an_error_is_counted(clock):
  times = WallTime()
  clock[0] += 2
  times.started()
  with pytest.raises(RuntimeError), times.lost_to("compile"):
    clock[0] += 6
    raise RuntimeError
  clock[0] += 2
  shares = times.shares()
  assert shares.pop("goodput") == pytest.approx(0.2)
  assert set(shares) == {f"lost_to_{name}" for name in LOST_TO}
  assert sum(shares.values()) == pytest.approx(0.8)
