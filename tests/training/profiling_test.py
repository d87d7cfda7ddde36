"""`--profile_steps`: which steps are traced, and what is refused."""

import json

import jax
import jax.numpy as jnp
import pytest

from calince_jax.errors import UserError
from calince_jax.training import profiling
from calince_jax.training.metric_logger import MetricLogger
from calince_jax.training.wall_time import WallTime


@pytest.mark.parametrize(
  "text", ["10", "a:b", "0:3", "5:4", "99:101", "-1:2", "1:2:3", ""]
)
def test_what_are_not_steps_of_the_run_is_refused(text):
  with pytest.raises(UserError, match=f"--profile_steps={text}"):
    profiling.parse(text, 100)


def test_both_ends_are_steps():
  assert list(profiling.parse("99:100", 100)) == [99, 100]


@pytest.fixture
def profile_of(tmp_path):
  """A profile of the steps 2 to 3 after `first_step`, of a run of 20."""

  def make(first_step):
    logger = MetricLogger(
      str(tmp_path),
      first_step=first_step,
      total_steps=20,
      batch_size=4,
      devices=1,
      times=WallTime(),
    )
    return profiling.StepProfile(
      range(2, 4),
      str(tmp_path),
      first_step=first_step,
      total_steps=20,
      logger=logger,
    )

  return make


def steps(profile, numbers):
  for step in numbers:
    profile.before(step, jnp.ones(()))
    profile.after(step, jnp.ones(()) + step)
  profile.close(numbers[-1])


def test_a_trace_is_of_the_steps_after_a_resume(profile_of, tmp_path, capsys):
  steps(profile_of(10), range(11, 16))
  (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
  assert trace.stat().st_size > 0
  (row,) = (tmp_path / "events.jsonl").read_text().splitlines()
  event = json.loads(row)
  assert (event["event"], event["first"], event["step"]) == ("profiled", 12, 13)
  assert f"xprof --logdir={tmp_path}" in capsys.readouterr().out


@pytest.fixture
def calls(monkeypatch):
  calls = []
  start, stop = (
    lambda folder: calls.append("start"),
    lambda: calls.append("end"),
  )
  monkeypatch.setattr(jax.profiler, "start_trace", start)
  monkeypatch.setattr(jax.profiler, "stop_trace", stop)
  return calls


def test_a_run_that_ends_early_ends_its_trace(profile_of, calls):
  steps(profile_of(0), [1, 2])
  assert calls == ["start", "end"]


def test_too_few_steps_left_are_said_and_not_traced(profile_of, calls, capsys):
  steps(profile_of(18), [19, 20])
  assert calls == []
  assert "only 2 steps of the run are left" in capsys.readouterr().out
