"""The command of the noise study: order, what it skips, a tiny real study."""

import json
import os
import re
import subprocess
import sys

import noise_study_fakes as fakes
import pytest
from conftest import QUICK, ROOT, TINY_CONFIG

from benchmarks.noise_study.__main__ import choose
from benchmarks.noise_study.collect import read_cost
from calince_jax.errors import UserError


@pytest.fixture
def study(tmp_path):
  """The module of the fake study, and its path."""
  return fakes.make_study(tmp_path)


def test_order_is_the_main_rate_first_then_whole_seeds(study, tmp_path):
  module, runs = study[0], fakes.runs_of(study, tmp_path / "out")
  chosen = choose(module, runs, ["cotrain", "infonce"], [], 2)
  assert [run.name for run in chosen] == [
    f"{method},mismatch={rate},mismatch_seed={seed},seed={seed}"
    for rate in (0.4, 0.0)
    for seed in (0, 1)
    for method in ("infonce", "cotrain")
  ]
  assert len(choose(module, runs, fakes.METHODS, ["0"], None)) == 15
  for words, message in (
    ((["magic"], [], None), "--methods: the study has no 'magic'"),
    ((fakes.METHODS, ["0.3"], None), "--noise_rates: .* no 0.3"),
    ((fakes.METHODS, [], 4), "--num_seeds: .* no 3"),
  ):
    with pytest.raises(UserError, match=message):
      choose(module, runs, *words)


def command(*words: str, module="noise_study") -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", f"benchmarks.{module}", *words],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": QUICK},  # one device
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def test_command_skips_the_finished_and_starts_the_missing(study, tmp_path):
  """The data set is not whole, so that what is started fails at once."""
  out, missing = tmp_path / "out", "cotrain,mismatch=0.4,mismatch_seed=1,seed=1"
  fakes.write_runs(study, out, leave_out=[missing])
  words = (
    f"--config={study[1]}",
    f"--out={out}",
    f"--data={tmp_path / 'data'}",
    f"--docs={tmp_path / 'docs'}",
    "--num_workers=1",
  )
  done = command(*words, "--noise_rates=0.4")
  assert done.returncode == 1, done.stderr
  assert "15 of the 30 runs" in done.stdout
  assert done.stdout.count("finished already") == 14
  assert f"start  {missing}, 0 waiting" in done.stdout
  assert f"FAILED {missing}" in done.stdout
  log = (out / missing / "sweep.log").read_text()
  assert f"--config={study[1]}:cotrain" in log
  assert "--config.data.mismatch=0.4" in log
  assert "29 of 30 runs are finished" in done.stdout
  assert "**1 runs are missing**" in (tmp_path / "docs/results.md").read_text()
  # Collecting needs no run.
  done = command(*words, "--collect")
  assert done.returncode == 0 and "start" not in done.stdout, done.stderr


def test_command_without_any_run_is_one_clear_error(study, tmp_path):
  done = command(
    f"--config={study[1]}", f"--out={tmp_path / 'out'}", "--collect"
  )
  assert done.returncode == 2 and "no finished run" in done.stderr
  assert len(done.stderr.splitlines()) == 1


REAL = """
import importlib

METHODS = ("cotrain",)
NOISE_RATES = (0.4,)
NUM_SEEDS = 1
CORPUS = {
  "num_clips": 24,
  "num_val": 4,
  "num_test": 8,
  "mismatch": 0.0,
  "size": 32,
  "max_objects": 1,
}
PREPARE = {"short_side": 32, "num_workers": 1}


def get_config(method="cotrain"):
  config = importlib.import_module(f"configs.{method}").get_config()
  config.update_from_flattened_dict(TINY)
  return config


def sweep():
  for method in METHODS:
    for rate in NOISE_RATES:
      yield {
        "config_argument": method,
        "data.mismatch": rate,
        "data.mismatch_seed": 0,
        "seed": 0,
      }
"""
TINY = TINY_CONFIG | {
  "batch_size": 8,
  "data.text_length": 24,
  "total_steps": 4,
  "evaluate_every": 2,
  "evaluate_splits": "val,test",
}


@pytest.fixture
def real_study(tmp_path):
  """One method of a tiny model; docs with marks."""
  path = tmp_path / "study.py"
  path.write_text(f"TINY = {TINY!r}\n{REAL}")
  (tmp_path / "docs").mkdir()
  (tmp_path / "docs/results.md").write_text(
    "<!-- noise_study -->\n<!-- /noise_study -->\n"
  )
  return str(path)


def test_a_tiny_study_from_nothing_to_its_section(real_study, tmp_path):
  out = tmp_path / "out"
  words = (f"--config={real_study}", f"--out={out}", f"--docs={tmp_path}/docs")
  done = command(*words, "--num_workers=1")
  assert done.returncode == 0, done.stdout + done.stderr
  assert "1 of 1 runs are finished" in done.stdout
  text = (tmp_path / "docs/results.md").read_text()
  assert "8 test, 24 train, 4 val" in text
  assert re.search(r"^\| `cotrain` \| 1 \| \*?\*?\d", text, re.M)
  summary = json.loads((out / "summary.json").read_text())
  score = summary["score"]["0.4"]["cotrain"]
  assert 0 <= score["auc_end"]["mean"] <= 1


def test_cost_is_timed_in_turns(real_study, tiny_dataset, tmp_path):
  done = command(
    f"--config={real_study}",
    "--methods=infonce,cotrain",
    f"--out={tmp_path / 'out'}",
    f"--data={tiny_dataset}",
    "--rounds=3",
    "--steps=1",
    module="noise_study.cost",
  )
  assert done.returncode == 0, done.stderr
  cost = read_cost(tmp_path / "out")
  seconds = cost["seconds_per_step"]
  assert list(seconds) == ["infonce", "cotrain"]
  assert all(len(s) == 3 and min(s) > 0 for s in seconds.values())
  assert cost["against"]["infonce"]["infonce"]["median"] == 1.0
