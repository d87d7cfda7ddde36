"""The progress line and metrics.jsonl."""

import json
import time

import numpy as np
import pytest

from calince_jax.training.metric_logger import MetricLogger
from calince_jax.training.wall_time import WallTime

METRICS = {
  "loss": np.float32(3.25),
  "correspondence": np.float32(0.5),
  "contrastive": np.float32(2.0),
  "predictive": np.float32(0.75),
  "in_batch_accuracy": np.float32(0.5),
  "confidence_histogram": np.arange(10),
  "skipped": np.bool_(False),
  "bad_steps": np.int32(0),
}


@pytest.fixture
def wait(monkeypatch):
  """Moves a clock that stands still otherwise."""
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])

  def forward(seconds):
    now[0] += seconds

  return forward


def open_logger(folder, first_step=0, **more):
  settings = {"devices": 2, "times": WallTime()} | more
  return MetricLogger(
    str(folder),
    first_step=first_step,
    total_steps=1000,
    batch_size=4,
    **settings,
  )


def rows(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_the_progress_line_shows_terms_rate_and_eta(tmp_path, capsys, wait):
  logger = open_logger(tmp_path)
  wait(7)
  logger.first_step_done()
  wait(0.1)
  logger.log(11, METRICS)
  logger.close()
  first, line = capsys.readouterr().out.splitlines()
  assert first.startswith("time to first step 7.0 s")
  for part in ("step 11/1000", "loss 3.250", "corr 0.500", "nce 2.000"):
    assert part in line
  assert "pred 0.750" in line and "acc 0.50" in line and "data wait 0%" in line
  # Ten steps of four pairs since the first, in 0.1 s; 989 steps are left.
  assert "400 examples/s  200.0 a device" in line and "ETA 0:00:09" in line
  assert "MFU" not in line  # nothing is known of these devices
  assert rows(tmp_path)[0]["seconds_to_first_step"] == 7


def test_a_row_says_how_fast_and_where_the_time_went(tmp_path, capsys, wait):
  """Ten steps in 4 s of 20; the devices could do ten steps a second."""
  times = WallTime()
  logger = open_logger(tmp_path, times=times, peak_rate=10.0)
  wait(6)
  times.started()
  with times.lost_to("compile"):
    wait(3)
  wait(1)
  logger.first_step_done()
  with times.lost_to("evaluation"):
    wait(5)
  with times.waiting_for_data():
    wait(1)
  wait(3)
  with times.lost_to("checkpoint"):
    wait(1)
  logger.log(11, METRICS)
  (row,) = rows(tmp_path)
  assert row["examples_per_second"] == pytest.approx(4 * 10 / 5)
  assert row["examples_per_second_per_device"] == pytest.approx(4)
  assert row["mfu"] == pytest.approx(0.2)
  seconds = {"start": 6, "compile": 3, "evaluation": 5, "data": 1}
  for name, lost in (seconds | {"checkpoint": 1}).items():
    assert row[f"lost_to_{name}"] == pytest.approx(lost / 20)
  assert row["goodput"] == pytest.approx(4 / 20)
  assert "MFU 20.0%" in capsys.readouterr().out.splitlines()[-1]
  assert logger.speed().items() <= row.items()
  wait(20)
  assert logger.speed()["goodput"] == pytest.approx(24 / 40)


def test_terms_that_are_not_trained_are_not_shown(tmp_path, capsys):
  logger = open_logger(tmp_path)
  terms = ("correspondence", "predictive")
  logger.log(1, {k: v for k, v in METRICS.items() if k not in terms})
  line = capsys.readouterr().out
  assert "nce 2.000" in line and "corr" not in line and "pred" not in line


def test_the_share_of_waiting_is_since_the_last_line(tmp_path, wait):
  times = WallTime()
  logger = open_logger(tmp_path, times=times)
  logger.first_step_done()
  with times.waiting_for_data():
    wait(0.06)
  wait(0.02)
  logger.log(2, METRICS)
  wait(0.02)
  logger.log(3, METRICS)
  waited, after = (row["data_wait_share"] for row in rows(tmp_path))
  assert waited == pytest.approx(0.75) and after == 0


def test_a_row_holds_plain_numbers(tmp_path):
  logger = open_logger(tmp_path)
  logger.log(2, METRICS)
  (row,) = rows(tmp_path)
  assert row["step"] == 2 and row["loss"] == 3.25 and row["skipped"] is False
  assert row["confidence_histogram"] == list(range(10))
  assert row["resident_memory_mib"] > 1


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
  logger = open_logger(tmp_path)
  for step in (2, 4, 6):
    logger.log(step, METRICS)
  logger.close()
  logger = open_logger(tmp_path, first_step=4)
  logger.log(6, METRICS | {"loss": np.float32(1.0)})
  logger.close()
  assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
    (2, 3.25),
    (4, 3.25),
    (6, 1.0),
  ]


@pytest.mark.parametrize(
  "torn", ['{"step": 4, "lo', '{"step": 4}', "[1\n", '{"step": []}\n']
)
def test_a_torn_last_line_is_dropped(tmp_path, torn):
  (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n' + torn)
  logger = open_logger(tmp_path, first_step=10)
  logger.log(12, METRICS)
  logger.close()
  assert [row["step"] for row in rows(tmp_path)] == [2, 12]


def test_an_event_is_written_and_its_message_printed(tmp_path, capsys):
  logger = open_logger(tmp_path)
  logger.event(0, "started", processes=2)
  logger.event(7, "skipped", "step 7 was skipped", pairs=[3])
  logger.close()
  assert capsys.readouterr().out == "warning: step 7 was skipped\n"
  # Events stay when the run is resumed from a step before them.
  open_logger(tmp_path, first_step=4).event(4, "resumed")
  lines = (tmp_path / "events.jsonl").read_text().splitlines()
  events = [json.loads(line) for line in lines]
  assert [(e["step"], e["event"]) for e in events] == [
    (0, "started"),
    (7, "skipped"),
    (4, "resumed"),
  ]
  assert events[1]["pairs"] == [3] and "words" not in events[0]
  assert all(e["time"].endswith("+00:00") for e in events)


def test_waiting_for_data_gives_advice_after_100_steps(tmp_path, capsys):
  times = WallTime()
  logger = open_logger(tmp_path, times=times)
  for step, advised in ((50, False), (150, True)):
    with times.waiting_for_data():
      time.sleep(0.01)
    logger.log(step, METRICS)
    assert ("advice: training waits" in capsys.readouterr().out) == advised


def test_the_writer_gets_the_scalars(tmp_path):
  class Writer:
    seen, closed = None, False

    def write_scalars(self, step, scalars):
      self.seen = (step, scalars)

    def close(self):
      self.closed = True

  writer = Writer()
  logger = open_logger(tmp_path, writer=writer)
  logger.log(2, METRICS)
  logger.close()
  step, scalars = writer.seen
  assert step == 2 and scalars["loss"] == 3.25 and writer.closed
  assert "confidence_histogram" not in scalars
