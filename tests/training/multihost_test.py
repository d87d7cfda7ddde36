"""One device and two processes of two devices train as eight devices do.

The two processes are stopped and killed on the way, and end together.
"""

import re
import signal
import time

import jax
import numpy as np
import pytest
from conftest import tiny_config, tiny_flags, train_tiny

from benchmarks.survival.peers import kill_one_of_two, peer_log, start_two
from benchmarks.survival.processes import (
  SECONDS,
  finish,
  last_step,
  rows,
  until,
)
from calince_jax.data.tokenizer import Vocabulary
from calince_jax.errors import UserError
from calince_jax.inference import exported
from calince_jax.runtime import checkpoint, distributed, sharding
from calince_jax.runtime.preemption import Preemption
from calince_jax.runtime.watchdog import Watchdog
from calince_jax.training import run, setup
from calince_jax.training.wall_time import WallTime

pytestmark = pytest.mark.timeout(1200)  # for the first test, which trains

STEPS = 12
CHANGES = {
  # Adam divides small gradients by small numbers: of rounding, large steps.
  "optimizer.learning_rate": 1e-4,
  "total_steps": STEPS,
  "log_every": 1,
  "checkpoint_every": 3,
  "evaluate_every": 4,
  "evaluate_splits": "test",
}
# The loss in tiles that go round all devices, the batch in two parts: it is the
# number that one process gets from the dense loss of the whole batch.
IN_TILES = {"similarities.form": "tiled", "similarities.tile": 1}
IN_TILES |= {"grad_cache_chunks": 2}


@pytest.fixture(scope="module")
def eight_devices(tiny_dataset, tmp_path_factory):
  """The folder of the run in this process, on 8 devices."""
  workdir = tmp_path_factory.mktemp("eight_devices")
  return train_tiny(workdir, tiny_config(tiny_dataset, changes=CHANGES))


@pytest.fixture(scope="module")
def two_processes(forked_survival, tiny_dataset, tmp_path_factory):
  """The folder of the same run in two processes, and what happened to it.

  They are stopped by SIGTERM to one of them; started again, one is killed; and
  started again, they train to the end.
  """
  workdir = tmp_path_factory.mktemp("multihost") / "run"
  flags = [*tiny_flags(tiny_dataset, CHANGES | IN_TILES), "--peer_timeout=5"]
  more = {"devices": 2}
  pair = start_two(flags, workdir, **more)
  assert until(lambda: last_step(workdir) >= 2, pair[0])
  pair[1].send_signal(signal.SIGTERM)
  for i, process in enumerate(pair):
    finish(process, peer_log(workdir, i))
  stopped = last_step(workdir)
  assert (workdir / "checkpoints" / str(stopped)).exists()
  killed = kill_one_of_two(
    flags, workdir, victim=1, at_step=stopped + 1, **more
  )
  return {
    "workdir": workdir,
    "flags": flags,
    "more": more,
    "stopped": stopped,
    "killed": killed,
    "logs": [printed_by(workdir, i) for i in range(2)],
  }


def printed_by(workdir, process):
  return peer_log(workdir, process).read_text()


def params_of(workdir, name="params"):
  parts = checkpoint.restore_parts(str(workdir), STEPS, [name])[1]
  return exported.flatten(parts[name])


def assert_params_close(ours, theirs, **tolerance):
  for name, value in theirs.items():
    # A softmax does not feel the bias of its keys, nor a centred embedding
    # that of the pooled feature: the gradient is rounding.
    if not name.endswith(
      ("key/bias", "pool/mlp/out/bias", "pooling/mlp/out/bias")
    ):
      np.testing.assert_allclose(ours[name], value, err_msg=name, **tolerance)


# Rounding may change the rank of a clip or two of the 12 by one.
EVALUATED = ("test/", "pairs/")


def test_one_device_learns_what_eight_learn(
  eight_devices, tiny_dataset, tmp_path, capsys
):
  config = tiny_config(tiny_dataset, changes=CHANGES).to_dict()
  training = setup.compile_training(
    config,
    sharding.make_mesh(jax.devices()),
    vocabulary=Vocabulary(80),
    num_pairs=104,
  )
  spread = [
    not place.is_fully_replicated for place in jax.tree.leaves(training.layout)
  ]
  assert any(spread), "nothing is sharded: this test would show nothing"

  workdir = tmp_path / "run"
  run.train(
    config,
    str(workdir),
    jax.devices()[:1],
    Preemption(),
    Watchdog(str(tmp_path / "stall.txt"), 0.0),
    times=WallTime(),
  )
  out = capsys.readouterr().out
  assert "on 1 cpu device(s)" in out and f"step {STEPS}/{STEPS}" in out
  for ours, theirs in zip(rows(workdir), rows(eight_devices), strict=True):
    for name, value in theirs.items():
      if not name.startswith(EVALUATED):
        np.testing.assert_allclose(
          ours[name], value, rtol=1e-4, atol=1e-5, err_msg=name
        )
  assert_params_close(
    params_of(workdir, "ema_params"),
    params_of(eight_devices, "ema_params"),
    rtol=1e-3,
    atol=1e-5,
  )


def test_the_first_process_alone_reports(two_processes):
  workdir, (first, second) = (two_processes[k] for k in ("workdir", "logs"))
  assert "on 4 cpu device(s), 2 process(es)" in first
  assert "similarities in tiles of 1 pairs, float32 products, xla" in first
  assert "encoded in 2 chunks" in first
  assert f"step {STEPS}/{STEPS}" in first and "finished" in first
  assert not re.search("^step|finished|stopped", second, re.MULTILINE)
  assert [row["step"] for row in rows(workdir)] == list(range(1, STEPS + 1))
  # It was started three times.
  assert len(list((workdir / "tensorboard").iterdir())) == 3


def test_sigterm_to_one_process_stops_both_at_one_step(two_processes):
  first, second = two_processes["logs"]
  stopped = two_processes["stopped"]
  assert f"stopped: saved step {stopped} of {STEPS}" in first
  assert "SIGTERM" in second
  assert f"resumed at step {stopped}" in first


def test_a_killed_process_ends_the_other_and_both_resume(two_processes):
  killed = two_processes["killed"]
  assert killed["status"] == 1 and killed["seconds"] < 30
  # Either is noticed first.
  lost = "no heartbeat|process 0 of the run has lost the others"
  assert re.search(lost, killed["words"])
  assert "the same commands resume" in killed["words"]
  assert f"finished: step {STEPS}" in two_processes["logs"][0]


def test_the_losses_are_those_of_one_process(two_processes, eight_devices):
  names = ("loss", "correspondence", "contrastive", "grad_norm")
  names += ("ln_N", "in_batch_accuracy", "effective_sample_size")
  for ours, theirs in zip(
    rows(two_processes["workdir"]), rows(eight_devices), strict=True
  ):
    for name in names:
      np.testing.assert_allclose(
        ours[name], theirs[name], rtol=1e-4, err_msg=name
      )


def test_they_evaluate_as_one_process_does(two_processes, eight_devices):
  workdir, (first, second) = (two_processes[k] for k in ("workdir", "logs"))
  assert f"eval {STEPS}: test t2v R@1" in first and "eval" not in second
  evaluated = 0
  for ours, theirs in zip(rows(workdir), rows(eight_devices), strict=True):
    names = [name for name in theirs if name.startswith(EVALUATED)]
    if theirs["step"] % CHANGES["evaluate_every"]:
      assert not names
      continue
    evaluated += 1
    assert "test/v2t_R@1" in names and "pairs/noise_rate_true" in names
    for name in names:
      # Rounding may change the rank of a clip or two of the 12.
      step = 9 if name.startswith("test/") else 0.02
      assert ours[name] == pytest.approx(theirs[name], abs=step), name
    assert ours["pairs/noise_rate_true"] == theirs["pairs/noise_rate_true"]
  assert evaluated == 3


def test_one_process_resumes_from_the_checkpoint_of_two(
  two_processes, eight_devices, tiny_dataset, capsys
):
  workdir = two_processes["workdir"]
  train_tiny(workdir, tiny_config(tiny_dataset, changes=CHANGES | IN_TILES))
  assert f"resumed at step {STEPS}" in capsys.readouterr().out
  ours, theirs = (
    checkpoint.restore_parts(str(folder), STEPS, ["calibration"])[1]
    for folder in (workdir, eight_devices)
  )
  ours, theirs = ours["calibration"], theirs["calibration"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    ours["moments"],
    theirs["moments"],
  )
  for name, counts in theirs["histograms"].items():
    assert counts.sum() > 16
    # Rounding may put a score or two into the neighbouring bin.
    moved = np.cumsum(ours["histograms"][name]) - np.cumsum(counts)
    assert np.abs(moved).max() < 2.1
  assert_params_close(
    params_of(workdir), params_of(eight_devices), rtol=1e-3, atol=1e-4
  )


def test_what_one_process_cannot_do_ends_both(two_processes):
  workdir, flags = two_processes["workdir"], two_processes["flags"]
  (workdir / "config.json").write_text("{")
  begin = time.monotonic()
  pair = start_two(flags, workdir, **two_processes["more"])
  assert [p.wait(SECONDS) for p in pair] == [2, 1]
  assert time.monotonic() - begin < 120
  for i in range(2):
    assert "error: process 0 of the run: " in printed_by(workdir, i)
    assert "config.json is damaged" in printed_by(workdir, i)


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
  cluster = distributed.Cluster(*arguments, start_timeout=9, peer_timeout=9)
  with pytest.raises(UserError, match=message), distributed.joined(cluster):
    pass
