"""The command of the noise study: the order of runs, and what it skips.

commands_test.py runs a tiny study from nothing.
"""

import subprocess
import sys

import forked
import noise_study_fakes as fakes
import pytest
from conftest import environment

from benchmarks.noise_study import corpora
from benchmarks.noise_study.__main__ import choose
from calince_jax.errors import UserError
from configs import noise_study


@pytest.fixture
def study(tmp_path):
  """The module of the fake study, and its path."""
  return fakes.make_study(tmp_path)


def test_order_is_the_main_rate_first_then_whole_seeds(study, tmp_path):
  module, runs = study[0], fakes.runs_of(study, tmp_path / "out")
  chosen = choose(module, runs, ["cotrain", "infonce"], [], ["uniform"], 2)
  assert [run.name for run in chosen] == [
    f"{method},mismatch={rate},mismatch_seed={seed},seed={seed}"
    for rate in (0.4, 0.0)
    for seed in (0, 1)
    for method in ("infonce", "cotrain")
  ]
  assert len(choose(module, runs, fakes.METHODS, ["0"], [], None)) == 15
  # Other kinds come last.
  kinds = ["near", "uniform"]
  chosen = choose(module, runs, ["cotrain"], ["0.4"], kinds, 1)
  assert [run.name for run in chosen] == [
    "cotrain,mismatch=0.4,mismatch_seed=0,seed=0",
    "cotrain,mismatch=0.4,mismatch_kind=near,mismatch_seed=0,seed=0",
  ]
  for words, message in (
    ((["magic"], [], [], None), "--methods: the study has no 'magic'"),
    ((fakes.METHODS, ["0.3"], [], None), "--noise_rates: .* no 0.3"),
    ((fakes.METHODS, [], ["far"], None), "--kinds: .* no 'far'"),
    ((fakes.METHODS, [], [], 4), "--num_seeds: .* no 3"),
  ):
    with pytest.raises(UserError, match=message):
      choose(module, runs, *words)


def command(*words: str) -> subprocess.CompletedProcess:
  return forked.run("benchmarks.noise_study", *words, env=environment(1))


def test_command_skips_the_finished_and_starts_the_missing(study, tmp_path):
  """The data set is not whole, so that what is started fails at once."""
  out, missing = tmp_path / "out", "cotrain,mismatch=0.4,mismatch_seed=1,seed=1"
  shared = {"total_steps": 30}
  fakes.write_runs(study, out, leave_out=[missing], shared=shared)
  words = (
    f"--config={study[1]}",
    f"--out={out}",
    f"--corpus={tmp_path / 'data'}",
    "--config.total_steps=30",
    "--num_workers=1",
  )
  done = command(*words, "--noise_rates=0.4")
  assert done.returncode == 1, done.stderr
  assert "24 of the 39 runs" in done.stdout
  assert done.stdout.count("finished already") == 23
  assert f"start  {missing}, 0 waiting" in done.stdout
  assert f"FAILED {missing}" in done.stdout
  log = (out / missing / "sweep.log").read_text()
  assert f"--config={study[1]}:cotrain" in log
  assert "--config.data.mismatch=0.4" in log
  assert "--config.total_steps=30" in log
  assert "38 of 39 runs are finished" in done.stdout
  # A study of one's own data has a page of its own.
  assert "**1 runs are missing**" in (out / "results.md").read_text()
  assert "former" in (tmp_path / "docs/results.md").read_text()
  # Collecting needs no run.
  done = command(*words, "--collect")
  assert done.returncode == 0 and "start" not in done.stdout, done.stderr


def test_command_without_any_run_is_one_clear_error(study, tmp_path):
  done = command(
    f"--config={study[1]}", f"--out={tmp_path / 'out'}", "--collect"
  )
  assert done.returncode == 2 and "no finished run" in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_a_corpus_that_is_not_there_is_one_clear_error(study, tmp_path):
  done = command(f"--config={study[1]}", "--corpus=none", f"--out={tmp_path}/o")
  assert done.returncode == 2 and "neither one of shapes nor" in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_a_simulator_gets_an_environment_of_its_own(tmp_path):
  env, install, make, prepare = corpora.make_commands(
    noise_study.CORPORA["grid"], tmp_path / "corpus", tmp_path / "data"
  )
  python = str(tmp_path / "corpus" / "env" / "bin" / "python")
  assert env[1:3] == ("-m", "venv") and python.startswith(env[3])
  assert install[0] == make[0] == python and "minigrid" in install
  assert make[2] == "benchmarks.corpora.grid"
  assert prepare[0] == sys.executable and "--short_side=64" in prepare
  manifest = make[3].removeprefix("--out=") + "/manifest.csv"
  assert f"--manifest={manifest}" in prepare
