"""When the hooks see a step, what they do with it, and how the loop ends."""

import json
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calince_jax.errors import UserError
from calince_jax.runtime import checkpoint, sharding
from calince_jax.runtime.preemption import Preemption
from calince_jax.runtime.watchdog import Watchdog
from calince_jax.training import hooks, loop
from calince_jax.training.metric_logger import MetricLogger
from calince_jax.training.wall_time import WallTime

CONFIG = {
  "batch_size": 4,
  "total_steps": 5,
  "log_every": 2,
  "checkpoint_every": 3,
  "evaluate_every": 2,
  "max_bad_steps": 2,
  "alarms": {
    "loss_spike": 10.0,
    "effective_sample_share": 0.5,
    "no_learning_steps": 0,
  },
  "objective": {"contrastive_weight": 1.0},
}


@flax.struct.dataclass
class State:
  step: jax.Array
  ema_params: jax.Array


def metrics_of(step, **changes):
  values = {
    "loss": 2.0,
    "in_batch_accuracy": 0.5,
    "effective_sample_size": 4.0,
    "skipped": False,
    "bad_steps": 0,
    "skipped_steps": 0,
  }
  return values | {"contrastive": 2.0 + step} | changes


def pairs_of(step):
  return {
    "pair_index": np.arange(4),
    "matched": np.array([1, 0, 1, 1], np.int8),
    "alignment_score": np.arange(4, dtype=np.float32) + step,
    "confidence": np.full(4, 0.5, np.float32),
    "weight": np.ones(4, np.float32),
    "finite": np.array([True, False, True, True]),
  }


def train_step(state, batch):
  state = state.replace(step=state.step + 1)
  more = {"pairs": pairs_of(0), "preempted": batch["preempted"].any()}
  return state, metrics_of(state.step) | more


class Retrieval:
  """An in-training evaluation that records when it is run."""

  def __init__(self, calls):
    self.calls = calls

  def metrics(self, params):
    self.calls.append("evaluation")
    return {"test/t2v_R@1": 50.0, "test/v2t_R@1": 25.0}

  def chance(self):
    return {"test/t2v_R@1": 10.0}


@pytest.fixture
def calls(monkeypatch):
  """Batches, evaluations, hooks and checkpoints in the order of their calls."""
  calls = []

  def save(checkpoints, step, state, config, pair_statistics):
    pairs = len(pair_statistics["alignment_score"]) if pair_statistics else 0
    calls.append(f"checkpoint {step} with {pairs} pairs")

  monkeypatch.setattr(checkpoint, "save", save)
  monkeypatch.setattr(checkpoint, "wait", lambda checkpoints: None)
  return calls


def a_run(calls, tmp_path, *, retrieval=None, logger=None, preempted_at=None):
  preemption = Preemption()

  def batches():
    for step in range(1, 100):
      calls.append(f"batch {step}")
      preemption.requested = step == preempted_at
      yield {"pair_index": np.arange(4)}

  schedule = {s: 0.1 * s for s in range(10)}.__getitem__
  training = types.SimpleNamespace(step=jax.jit(train_step), schedule=schedule)
  return loop.Run(
    config=CONFIG,
    mesh=sharding.make_mesh(jax.devices()[:1]),
    training=training,
    batches=batches(),
    corrupt_records=types.SimpleNamespace(counts=lambda: {"corrupt": 7}),
    checkpoints=None,
    logger=logger,
    retrieval=retrieval,
    pair_statistics={},
    preemption=preemption,
    watchdog=Watchdog(str(tmp_path / "stall.txt"), 0.0),
    times=WallTime(),
  )


def start_state():
  return State(step=jnp.int32(0), ema_params=jnp.zeros(()))


@pytest.fixture
def recorded(calls, monkeypatch):
  """Adds a hook that records its calls to those of each run."""
  open_hooks = loop.open_hooks

  def record(result):
    calls.append(f"hooks {result.step}")
    return False

  monkeypatch.setattr(
    loop, "open_hooks", lambda *args: [record, *open_hooks(*args)]
  )


def test_hooks_see_a_step_after_the_next_but_before_a_checkpoint(
  calls, recorded, tmp_path
):
  state = loop.loop(a_run(calls, tmp_path), start_state())
  assert int(state.step) == 5
  assert calls == [
    *("batch 1", "batch 2", "hooks 1"),
    *("batch 3", "hooks 2", "hooks 3", "checkpoint 3 with 0 pairs"),
    *("batch 4", "batch 5", "hooks 4", "hooks 5", "checkpoint 5 with 0 pairs"),
  ]


def test_a_preempted_run_ends_with_a_checkpoint_of_all_steps(
  calls, recorded, tmp_path
):
  state = loop.loop(a_run(calls, tmp_path, preempted_at=1), start_state())
  assert int(state.step) == 2
  assert calls == [
    *("batch 1", "batch 2", "hooks 1", "hooks 2"),
    "checkpoint 2 with 0 pairs",
  ]


def test_evaluations_are_of_their_step_and_take_the_pairs_before_them(
  calls, recorded, tmp_path
):
  loop.loop(a_run(calls, tmp_path, retrieval=Retrieval(calls)), start_state())
  assert calls == [
    *("batch 1", "batch 2", "evaluation", "hooks 1"),
    # The four pairs of step 3 wait for the evaluation after step 4.
    *("batch 3", "hooks 2", "hooks 3", "checkpoint 3 with 4 pairs"),
    *("batch 4", "evaluation", "batch 5", "evaluation"),
    *("hooks 4", "hooks 5", "checkpoint 5 with 0 pairs"),
  ]


def rows(folder, name):
  return [json.loads(row) for row in (folder / name).read_text().splitlines()]


@pytest.fixture
def logger(tmp_path):
  return MetricLogger(
    str(tmp_path),
    first_step=0,
    total_steps=5,
    batch_size=4,
    devices=1,
    times=WallTime(),
  )


def test_rows_hold_what_every_hook_adds(calls, tmp_path, logger, capsys):
  run = a_run(calls, tmp_path, retrieval=Retrieval(calls), logger=logger)
  loop.loop(run, start_state())
  logged = rows(tmp_path, "metrics.jsonl")
  assert [row["step"] for row in logged] == [2, 4, 5]
  for row in logged:
    assert row["contrastive"] == 2.0 + row["step"] and row["corrupt"] == 7
    assert row["learning_rate"] == pytest.approx(0.1 * (row["step"] - 1))
    assert row["test/t2v_R@1"] == 50.0 and row["pairs/noise_rate_true"] == 0.25
    assert not {"pairs", "preempted"} & row.keys()
  evaluations = [
    line
    for line in capsys.readouterr().out.splitlines()
    if line.startswith("eval")
  ]
  assert [line.split(":")[0] for line in evaluations] == [
    f"eval {step}" for step in (2, 4, 5)
  ]


def test_no_step_is_compiled_a_second_time(calls, tmp_path):
  """Another shape is an error, where jit would have compiled again."""
  run, state = a_run(calls, tmp_path), start_state()
  batch = loop.next_batch(run)
  step = loop.compile_step(run, state, batch)
  state, _ = step(state, loop.next_batch(run))
  longer = {name: jnp.concatenate([x, x]) for name, x in batch.items()}
  with pytest.raises(TypeError, match="compiled"):
    step(state, longer)
  run.training.step(state, longer)


def result_of(step, *, logged=True, **changes):
  return hooks.StepResult(
    step=step,
    metrics=metrics_of(step, **changes),
    pairs=pairs_of(step),
    preempted=False,
    evaluation={},
    logged=logged,
    state=State(step=np.int32(step + 1), ema_params=None),
  )


def test_skipped_steps_are_reported_and_end_the_run(calls, tmp_path, logger):
  pairs = hooks.CollectPairs(pairs_of(0))
  skipped_steps = hooks.SkippedSteps(CONFIG, None, logger, pairs)
  assert not skipped_steps(result_of(1))
  bad = {"skipped": True, "contrastive": np.nan}
  assert not skipped_steps(result_of(2, bad_steps=1, skipped_steps=1, **bad))
  assert calls == []
  with pytest.raises(UserError, match=r"^2 steps in a row.* saved as step 4;"):
    skipped_steps(result_of(3, bad_steps=2, skipped_steps=2, **bad))
  # The state may be a later one; the pairs of the skipped step are not in it.
  assert calls == ["checkpoint 4 with 4 pairs"]
  first, second = rows(tmp_path, "events.jsonl")
  assert (first["step"], second["step"]) == (2, 3)
  assert first["event"] == "skipped" and first["pairs"] == [1]
  assert first["words"] == (
    "step 2 was skipped: contrastive not finite, of pairs 1 (1 in a row, 1 in"
    " all)"
  )


def test_a_loss_spike_is_an_event(tmp_path, logger):
  spikes = hooks.LossSpikes(10.0, logger)
  for step in range(1, 80):
    assert not spikes(result_of(step, loss=9.0 if step == 70 else 2.0))
  (event,) = rows(tmp_path, "events.jsonl")
  assert (event["step"], event["event"]) == (70, "loss_spike")
  assert (event["loss"], event["median"]) == (9.0, 2.0)


def test_collapsed_weights_are_an_event_once_each_time(tmp_path, logger):
  collapsed = hooks.CollapsedWeights(CONFIG, logger)
  for step, effective in enumerate([4.0, 1.0, 1.5, 3.0, 1.0]):
    assert not collapsed(result_of(step, effective_sample_size=effective))
  assert not collapsed(
    result_of(9, logged=False, effective_sample_size=4.0)
  )  # only logged steps count
  assert not collapsed(result_of(10, effective_sample_size=1.0))
  events = rows(tmp_path, "events.jsonl")
  assert [event["step"] for event in events] == [1, 4]
  assert events[0]["effective_sample_share"] == 0.25


def test_a_run_at_chance_says_so_and_one_that_learns_says_when(
  tmp_path, logger, capsys
):
  learning = hooks.NoLearning(20, 128, logger)
  for step in range(1, 101):
    accuracy = 1 / 128 if step <= 70 else 0.5
    assert not learning(result_of(step, in_batch_accuracy=accuracy, ln_N=4.85))
  events = rows(tmp_path, "events.jsonl")
  assert [(e["step"], e["event"]) for e in events] == [
    (20, "no_learning"),
    (40, "no_learning"),
    (71, "took_off"),
  ]
  assert "ln N = 4.85) after 20 steps" in events[0]["words"]
  printed = capsys.readouterr().out.splitlines()
  assert printed[0].startswith("warning: the contrastive loss is still")
  assert printed[2].startswith("learning has begun at step 71")


def test_a_run_that_is_resumed_after_its_take_off_says_nothing(
  tmp_path, logger
):
  learning = hooks.NoLearning(20, 128, logger)
  for step in range(31, 101):
    learning(result_of(step, in_batch_accuracy=0.5, ln_N=4.85))
  assert rows(tmp_path, "events.jsonl") == []


def test_calibration_that_begins_and_one_that_never_does(tmp_path, logger):
  begins = hooks.CalibrationBegins(10, logger)
  for step in range(1, 11):
    assert not begins(result_of(step, trust=0.0 if step < 6 else 0.2))
  never = hooks.CalibrationBegins(10, logger)
  for step in range(1, 11):
    assert not never(result_of(step, trust=0.0))
  assert not never(result_of(10))  # a method without earned weights
  events = rows(tmp_path, "events.jsonl")
  assert [(e["step"], e["event"]) for e in events] == [
    (6, "calibration_began"),
    (10, "not_identified"),
  ]
  assert events[0]["words"].startswith("calibration began at step 6")
