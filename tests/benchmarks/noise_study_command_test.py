"""The command of the noise study: the order of runs, and what it skips.

commands_test.py runs a tiny study from nothing.
"""

import subprocess

import forked
import noise_study_fakes as fakes
import pytest
from conftest import environment

from benchmarks.noise_study.__main__ import choose
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


def command(*words: str) -> subprocess.CompletedProcess:
  return forked.run("benchmarks.noise_study", *words, env=environment(1))


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
