"""Retrieval during training: logged, and equal to what evaluate computes."""

import json
import time

import numpy as np
import pytest
from conftest import tiny_config, train_tiny

from calince_jax import evaluate
from calince_jax.errors import UserError
from calince_jax.training.metric_logger import MetricLogger
from calince_jax.training.wall_time import WallTime

EVERY = {"evaluate_every": 4, "evaluate_splits": "test,train"}
# The compiled step is that of every tiny run: nothing here changes it.
SAVED = {"checkpoint_every": 2, "data.mismatch": 0.4}


EVALUATED = ("test/", "val/", "train/", "pairs")  # the metrics of these


def rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def evaluated(tiny_dataset, tmp_path_factory):
  """A run of six steps on 8 devices that is evaluated at 4 and, at last, 6."""
  workdir = tmp_path_factory.mktemp("evaluated")
  return train_tiny(workdir, tiny_config(tiny_dataset, changes=EVERY | SAVED))


def test_the_rows_of_an_evaluation(evaluated):
  before, *logged = rows(evaluated)
  assert before["step"] == 2
  assert not [name for name in before if name.startswith(EVALUATED)]
  assert [row["step"] for row in logged] == [4, 6]
  for row in logged:
    for name in ("test/t2v_R@1", "test/v2t_R@10", "train/t2v_R@5"):
      assert 0 <= row[name] <= 100
    assert 1 <= row["test/t2v_MedR"] <= 12 and 1 <= row["train/v2t_MeanR"] <= 80
    for name in ("auc", "auc_confidence", "ece", "noise_rate_true"):
      assert 0 <= row[f"pairs/{name}"] <= 1
    assert 0 < row["pairs/effective_sample_share"] <= 1.0001
    assert row["pairs/weight_matched"] >= 0 <= row["pairs/weight_mismatched"]
    assert "pairs" not in row
  # 0.4 of the clips were exchanged, a few more were wrong before.
  assert 0.2 < np.mean([row["pairs/noise_rate_true"] for row in logged]) < 0.7


@pytest.mark.parametrize("step", [4, 6])
def test_sharded_evaluation_is_what_evaluate_computes(evaluated, step):
  (row,) = [row for row in rows(evaluated) if row["step"] == step]
  for split in ("test", "train"):
    options = evaluate.Options(
      str(evaluated),
      split=split,
      train_split=split,
      mismatch=0.0,  # training evaluates with the captions as they are
      step=step,
      batch_size=7,
      report_queries=0,
    )
    metrics = evaluate.evaluate(options)["retrieval"]["metrics"]
    for name, value in metrics.items():
      ours = row[f"{split}/{name}"]
      assert ours == pytest.approx(value, rel=1e-6), (split, name)


def test_without_evaluation_nothing_changes(tiny_dataset, evaluated, tmp_path):
  off = tiny_config(tiny_dataset, changes={"evaluate_every": 0} | SAVED)
  plain = train_tiny(tmp_path, off)
  for row, more in zip(rows(plain), rows(evaluated), strict=True):
    assert not [name for name in row if name.startswith(EVALUATED)]
    for name in ("loss", "grad_norm", "noise_rate"):
      assert row[name] == more[name]


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"evaluate_every": 3}, "evaluate_every=3.*log_every=2"),
    ({"evaluate_every": -2}, "evaluate_every=-2 must be.*at least 0"),
    (EVERY | {"evaluate_splits": "val"}, "splits='val'.*'test', 'train'"),
    (EVERY | {"evaluate_splits": ""}, "evaluate_splits=''"),
    ({"data.mismatch": 1.5}, "1.5"),
  ],
)
def test_wrong_settings_are_named_before_anything_is_written(
  tiny_dataset, tmp_path, changes, message
):
  with pytest.raises(UserError, match=message):
    train_tiny(tmp_path / "run", tiny_config(tiny_dataset, changes=changes))
  assert not (tmp_path / "run").exists()


def test_an_evaluation_is_printed_and_its_time_not_counted(
  tmp_path, capsys, monkeypatch
):
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  times = WallTime()
  monitor = MetricLogger(
    str(tmp_path),
    first_step=0,
    total_steps=100,
    batch_size=4,
    devices=1,
    times=times,
  )
  now[0] += 2
  with times.lost_to("evaluation"):
    now[0] += 50
  metrics = {
    "loss": np.float32(1.0),
    "in_batch_accuracy": np.float32(0.5),
    "skipped": np.bool_(False),
    "bad_steps": np.int32(0),
  }
  monitor.log(10, metrics)
  chance = {"val/t2v_R@1": 0.2, "val/v2t_R@1": 0.2}
  found = {"val/t2v_R@1": 3.44, "val/v2t_R@1": 3.1, "pairs/auc": 0.949}
  monitor.evaluated(10, found, chance)
  monitor.close()
  assert rows(tmp_path)[0]["examples_per_second"] == pytest.approx(4 * 10 / 2)
  said = capsys.readouterr().out.splitlines()[-1]
  assert said == (
    "eval 10: val t2v R@1 3.4 v2t R@1 3.1 (chance 0.2)  score AUC 0.95"
  )
