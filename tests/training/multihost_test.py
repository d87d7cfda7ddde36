"""Two processes of four devices do what one process of eight does."""

import json

import jax
import numpy as np
import pytest
from conftest import QUICK, tiny_config, tiny_flags, train_tiny

from benchmarks.survival.peers import peer_log, start_two
from benchmarks.survival.processes import finish
from calince_jax.errors import UserError
from calince_jax.inference import exported
from calince_jax.runtime import checkpoint, distributed

# Two of the three terms are enough for what hosts share: negatives and weights.
CHANGES = {
  "objective.predictive_weight": 0.0,
  "total_steps": 4,
  "checkpoint_every": 4,
  "evaluate_every": 2,
  "evaluate_splits": "test",
}


# The loss in tiles that go round all devices, the batch in two parts: it is the
# number that one process gets from the dense loss of the whole batch.
IN_TILES = {"similarities.form": "tiled", "similarities.tile": 1}
IN_TILES |= {"grad_cache_chunks": 2}


@pytest.fixture(scope="module")
def two_processes(tiny_dataset, tmp_path_factory):
  """The folder of the run, and what each process printed."""
  workdir = tmp_path_factory.mktemp("multihost") / "run"
  words = tiny_flags(tiny_dataset, CHANGES | IN_TILES)
  pair = start_two(words, workdir, devices=4, xla=QUICK)
  for i, process in enumerate(pair):
    finish(process, peer_log(workdir, i))
  return workdir, [peer_log(workdir, i).read_text() for i in range(2)]


@pytest.fixture(scope="module")
def one_process(tiny_dataset, tmp_path_factory):
  """The folder of the same run in this process, on 8 devices."""
  workdir = tmp_path_factory.mktemp("one_process")
  return train_tiny(workdir, tiny_config(tiny_dataset, changes=CHANGES))


def rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_the_first_process_alone_reports(two_processes):
  workdir, (first, second) = two_processes
  assert "on 8 cpu device(s), 2 process(es)" in first
  assert "similarities in tiles of 1 pairs, float32 products, xla" in first
  assert "encoded in 2 chunks" in first
  assert "step 4/4" in first and "finished" in first
  assert "step" not in second and "finished" not in second
  assert [row["step"] for row in rows(workdir)] == [2, 4]
  assert len(list((workdir / "tensorboard").iterdir())) == 1


def test_the_losses_are_those_of_one_process(two_processes, one_process):
  names = ("loss", "correspondence", "contrastive", "grad_norm")
  names += ("ln_N", "in_batch_accuracy", "effective_sample_size")
  for ours, theirs in zip(
    rows(two_processes[0]), rows(one_process), strict=True
  ):
    for name in names:
      np.testing.assert_allclose(
        ours[name], theirs[name], rtol=1e-4, err_msg=name
      )


def test_they_find_in_the_evaluation_what_one_process_finds(
  two_processes, one_process
):
  workdir, (first, second) = two_processes
  assert "eval 4: test t2v R@1" in first and "eval" not in second
  for ours, theirs in zip(rows(workdir), rows(one_process), strict=True):
    names = [name for name in theirs if name.startswith(("test/", "pairs/"))]
    assert "test/v2t_R@1" in names and "pairs/noise_rate_true" in names
    for name in names:
      # Rounding may change the place of a clip or two of the 12.
      step = 9 if name.startswith("test/") else 0.02
      assert ours[name] == pytest.approx(theirs[name], abs=step), name
    assert ours["pairs/noise_rate_true"] == theirs["pairs/noise_rate_true"]


def test_one_process_goes_on_from_the_checkpoint_of_two(
  two_processes, one_process, tiny_dataset, capsys
):
  workdir, _ = two_processes
  train_tiny(workdir, tiny_config(tiny_dataset, changes=CHANGES | IN_TILES))
  assert "resumed at step 4" in capsys.readouterr().out
  ours, theirs = (
    checkpoint.restore_parts(str(folder), 4, ["params", "calibration"])[1]
    for folder in (workdir, one_process)
  )
  ours_known, theirs_known = ours["calibration"], theirs["calibration"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    ours_known["moments"],
    theirs_known["moments"],
  )
  for name, counts in theirs_known["histograms"].items():
    assert counts.sum() > 16
    # Rounding may put a score or two into the neighbouring bin.
    moved = np.cumsum(ours_known["histograms"][name]) - np.cumsum(counts)
    assert np.abs(moved).max() < 2.1
  flat = exported.flatten(ours["params"])
  for name, value in exported.flatten(theirs["params"]).items():
    # A softmax does not feel the bias of its keys: the gradient is rounding.
    if not name.endswith("key/bias"):
      np.testing.assert_allclose(
        flat[name], value, rtol=1e-3, atol=1e-4, err_msg=name
      )


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("off", None, None, 0), "go with --distributed=manual"),
    (("off", None, 2, None), "goes with --distributed=manual or auto"),
    (("off", "localhost:1", None, 0), "needs.*--num_processes"),
    (("manual", None, 2, 0), "needs --coordinator_address"),
    (("manual", "localhost", 2, 0), "localhost is not HOST:PORT"),
    (("manual", "localhost:1", 2, 2), "process_id=2 is not one of the 2"),
  ],
)
def test_half_a_cluster_is_refused(arguments, message):
  limits = {"start_timeout": 9, "peer_timeout": 9}
  with (
    pytest.raises(UserError, match=message),
    distributed.joined(distributed.Cluster(*arguments, **limits)),
  ):
    pass
