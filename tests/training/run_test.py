"""A whole run: what it writes, and how it is resumed."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import tiny_config, train_tiny

from benchmarks.survival.kills import STATE
from benchmarks.survival.processes import rows as learning
from calince_jax import config as config_lib
from calince_jax import train
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError
from calince_jax.runtime import checkpoint, sharding
from calince_jax.runtime.preemption import Preemption
from calince_jax.runtime.watchdog import Watchdog
from calince_jax.training import run, setup
from calince_jax.training.wall_time import WallTime

LOGGED = {
  "loss",
  "correspondence",
  "contrastive",
  "predictive",
  "ln_N",
  "in_batch_accuracy",
  "confidence_histogram",
  "effective_sample_size",
  "balanced_accuracy",
  "logit_scale",
  "grad_norm",
  "video_collapse",
  "text_collapse",
  "learning_rate",
  "noise_rate",
  "examples_per_second",
  "examples_per_second_per_device",
  "data_wait_share",
  "goodput",
}


def rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def state_of(workdir, step):
  return checkpoint.restore_parts(str(workdir), step, STATE)[1]


def assert_same_bits(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_every_metric_is_logged_and_in_range(trained_run):
  logged = rows(trained_run)
  assert [row["step"] for row in logged] == [2, 4, 6]
  for row in logged:
    assert row.keys() >= LOGGED
    assert np.isfinite(
      [x for x in row.values() if not isinstance(x, list)]
    ).all()
    assert row["ln_N"] == pytest.approx(np.log(16))
    assert len(row["confidence_histogram"]) == 10
    assert sum(row["confidence_histogram"]) == 16
    assert 0 < row["effective_sample_size"] <= 16.001
    assert 0 <= row["balanced_accuracy"] <= 1
    lambdas = {"correspondence": 0.1, "contrastive": 1.0, "predictive": 0.1}
    assert row["loss"] == pytest.approx(
      sum(weight * row[name] for name, weight in lambdas.items())
    )
    assert not row["skipped"]
  rates = [row["learning_rate"] for row in logged]
  assert rates == sorted(rates, reverse=True) and rates[-1] > 0
  assert logged[-1]["loss"] < logged[0]["loss"]


def test_the_run_folder_holds_all_that_other_commands_need(
  trained_run, tiny_dataset
):
  events = list((trained_run / "tensorboard").glob("events.out.tfevents.*"))
  assert len(events) == 1 and events[0].stat().st_size > 1000
  config = config_lib.read_run(str(trained_run))
  assert config["data"]["datasets"] == str(tiny_dataset)
  assert config["total_steps"] == 6
  Tokenizer(trained_run / "tokenizer.model")
  assert {p.name for p in (trained_run / "checkpoints").iterdir()} == {"3", "6"}
  state = state_of(trained_run, 6)
  assert state["step"] == 6 and state["bad_steps"] == 0
  # The average has followed, and is not the parameters.
  for before, after in (
    (state_of(trained_run, 3)["params"], state["params"]),
    (state["params"], state["ema_params"]),
  ):
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(changed["video_encoder"]))


@pytest.fixture(scope="module")
def interrupted(trained_run, tiny_dataset, tmp_path_factory):
  """The run as a crash after step 3 would leave it, and then resumed."""
  workdir = tmp_path_factory.mktemp("interrupted") / "run"
  shutil.copytree(trained_run, workdir)
  shutil.rmtree(workdir / "checkpoints" / "6")
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"step": 7, "lo')
  config = tiny_config(tiny_dataset)
  train.train(train.Options(str(workdir), config, profile_steps="2:3"))
  return workdir


def test_three_steps_and_three_are_six_to_the_last_bit(
  trained_run, interrupted
):
  assert_same_bits(state_of(interrupted, 6), state_of(trained_run, 6))
  assert learning(interrupted) == learning(trained_run)


def test_a_start_says_how_fast_it_was_and_traces_steps(interrupted):
  events = (interrupted / "events.jsonl").read_text().splitlines()
  by_name = {event["event"]: event for event in map(json.loads, events)}
  profiled, finished = by_name["profiled"], json.loads(events[-1])
  # Steps are counted from the resumed one, 4.
  assert (profiled["event"], profiled["first"], profiled["step"]) == (
    *("profiled", 5, 6),
  )
  assert len(list(interrupted.glob("plugins/profile/*/*.xplane.pb"))) == 1
  assert finished["event"] == "finished"
  last = rows(interrupted)[-1]
  assert last["examples_per_second_per_device"] == pytest.approx(
    last["examples_per_second"] / jax.device_count()
  )
  assert finished["examples_per_second"] == last["examples_per_second"]
  shares = ("start", "compile", "data", "checkpoint", "evaluation")
  lost = [finished[f"lost_to_{name}"] for name in shares]
  assert finished["goodput"] + sum(lost) == pytest.approx(1)
  assert min(lost[:4]) > 0 and lost[4] == 0  # nothing was evaluated
  assert "mfu" not in last  # of a CPU


def test_pair_statistics_do_not_depend_on_where_the_run_was_resumed(
  tiny_dataset, tmp_path
):
  changes = {
    "evaluate_every": 4,  # the pairs of steps 1 to 4 are summed up together
    "evaluate_splits": "test",
    "keep_checkpoints": 5,
  }
  config = tiny_config(tiny_dataset, changes=changes)
  whole = train_tiny(tmp_path / "whole", config)
  parts = tmp_path / "parts"
  shutil.copytree(whole, parts)
  shutil.rmtree(parts / "checkpoints" / "6")
  train_tiny(parts, config)
  events = (parts / "events.jsonl").read_text().splitlines()
  ends = [
    (event["event"], event["step"])
    for event in map(json.loads, events)
    if event["event"] in ("started", "resumed", "finished")
  ]
  assert ends[1:] == [("finished", 6), ("resumed", 3), ("finished", 6)]
  assert learning(parts) == learning(whole)
  assert all("pairs/auc" in row for row in learning(parts)[-2:])
  assert_same_bits(state_of(parts, 6), state_of(whole, 6))


def test_a_run_is_resumed_with_another_layout(
  trained_run, tiny_dataset, tmp_path
):
  workdir = tmp_path / "run"
  shutil.copytree(trained_run, workdir)
  shutil.rmtree(workdir / "checkpoints" / "6")
  changes = {
    "sharding.model_parallel": 2,
    "sharding.rules": (("kernel", "model"), (".*", "replicate")),
  }
  train_tiny(workdir, tiny_config(tiny_dataset, changes=changes))
  for ours, theirs in zip(
    learning(workdir), learning(trained_run), strict=True
  ):
    for name, value in theirs.items():
      np.testing.assert_allclose(
        ours[name], value, rtol=1e-3, atol=1e-3, err_msg=name
      )


def test_a_finished_run_is_left_as_it_is(interrupted, tiny_dataset):
  before = (interrupted / "metrics.jsonl").read_bytes()
  train_tiny(interrupted, tiny_config(tiny_dataset))
  assert (interrupted / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
  "changes, key",
  [
    ({"optimizer.learning_rate": 0.5}, "optimizer.learning_rate"),
    ({"model.head_hidden": 8, "seed": 1}, "model.head_hidden.*seed"),
  ],
)
def test_a_run_is_not_resumed_with_another_configuration(
  trained_run, tiny_dataset, changes, key
):
  before = (trained_run / "config.json").read_bytes()
  config = tiny_config(tiny_dataset, changes=changes)
  with pytest.raises(UserError, match=f"{key}.*--workdir"):
    train_tiny(trained_run, config)
  assert (trained_run / "config.json").read_bytes() == before


def test_settings_that_do_not_change_the_numbers_may_change(
  trained_run, tiny_dataset
):
  config = tiny_config(tiny_dataset, changes={"log_every": 5})
  train_tiny(trained_run, config)  # finished: nothing to do


def test_a_run_keeps_its_tokenizer(trained_run, tiny_dataset, tmp_path):
  shutil.copytree(trained_run, tmp_path / "run")
  (tmp_path / "run" / "tokenizer.model").write_bytes(b"of other captions")
  with pytest.raises(UserError, match="tokenizer"):
    train_tiny(tmp_path / "run", tiny_config(tiny_dataset))


def test_too_many_bad_steps_end_the_run(
  tiny_dataset, tmp_path, capsys, monkeypatch
):
  # A learning rate that the checks of the configuration would refuse.
  monkeypatch.setattr(
    setup,
    "learning_rate_schedule",
    lambda *_: lambda _: 1e30,
  )
  changes = {"max_bad_steps": 2, "log_every": 1}
  config = tiny_config(tiny_dataset, "infonce", changes).to_dict()
  watchdog = Watchdog(str(tmp_path / "stall.txt"), 0.0)
  with pytest.raises(UserError, match=r"2 steps in a row.*learning_rate"):
    run.train(
      config,
      str(tmp_path),
      jax.devices()[:1],
      Preemption(),
      watchdog,
      times=WallTime(),
    )
  assert "was skipped" in capsys.readouterr().out
  saved = checkpoint.restore_parts(str(tmp_path), None, ["params"])[1]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(saved))


def test_what_every_device_holds_whole_is_said_with_a_way_out():
  """A width of 20 on 8 devices; on 4, two groups of it, it is divided."""
  tree = {"kernel": jax.ShapeDtypeStruct((900, 20), np.float32)}
  tree |= {"small": jax.ShapeDtypeStruct((3,), np.float32)}
  config = {"sharding": {"rules": [(".*", "fsdp")]}}
  lines = []
  for slices in (1, 2):
    mesh = sharding.make_mesh(jax.devices(), slices=slices)
    layout = sharding.shardings(tree, mesh, config["sharding"]["rules"])
    made = SimpleNamespace(abstract=tree, layout=layout)
    lines += run.describe_replicated(config, mesh, made)
  (line,) = lines
  assert "1 arrays of the state, such as kernel, stand whole" in line
  assert "(0.1 MiB)" in line and "config.sharding.slices=2 " in line


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"batch_size": 12}, "batch_size=12.*8 devices"),
    ({"data.split": "dev"}, "'dev'.*'test', 'train'"),
    ({"sharding.model_parallel": 3}, "model_parallel=3"),
    ({"log_every": 0}, "log_every=0"),
  ],
)
def test_wrong_values_leave_nothing_behind(
  tiny_dataset, tmp_path, changes, message
):
  with pytest.raises(UserError, match=message):
    train_tiny(tmp_path / "run", tiny_config(tiny_dataset, changes=changes))
  assert not (tmp_path / "run").exists()


def test_two_data_sets_are_mixed(tiny_dataset, tmp_path):
  changes = {
    "data.datasets": f"{tiny_dataset},{tiny_dataset}",
    "data.weights": "3,1",
  }
  config = tiny_config(tiny_dataset, changes=changes).to_dict()
  data = setup.open_data(config)
  mesh = sharding.make_mesh(jax.devices())
  batch = next(setup.train_batches(config, data, mesh, 0))
  assert batch["video"].shape == (16, 4, 32, 32, 3)
  # The second's pairs come after the 104 of the first.
  assert sorted(batch["pair_index"] >= 104) == [False] * 12 + [True] * 4
