"""However a command ends, it ends: at once, in one line, with its status."""

import subprocess
import sys

import pytest
from conftest import ROOT

from calince_jax import cli
from calince_jax.errors import UserError

ENDS = """
import os, signal, sys, threading, time
sys.argv = ["train"]
from calince_jax import cli
from calince_jax.errors import UserError

def main():
  threading.Thread(target=time.sleep, args=(600,)).start()
  {act}

cli.run(main, interrupted="the same command resumes")
"""


def end(act):
  """Of a process that has a thread of a library's, which never ends."""
  return subprocess.run(
    [sys.executable, "-c", ENDS.format(act=act)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=100,
    check=False,
  )


@pytest.mark.parametrize(
  "act, status, words",
  [
    ("raise UserError('bad input')", 2, "error: bad input\n"),
    ("raise OSError(28, 'No space left')", 2, "error: the disk is full;"),
    ("raise OSError(27, 'File too large', 'a')", 2, "error: a: the disk is"),
    ("os.kill(os.getpid(), signal.SIGINT)", 2, "error: interrupted; the same"),
    ("raise RuntimeError('a fault')", 1, "RuntimeError: a fault"),
  ],
)
def test_an_error_ends_the_process_whatever_its_threads_do(act, status, words):
  done = end(act)
  assert done.returncode == status, done.stderr
  assert words in done.stderr
  assert status == 1 or "Traceback" not in done.stderr
  assert status == 1 or done.stderr.count("\n") == 1


def test_an_interrupt_during_the_imports_is_one_line():
  program = """
import os, signal, sys, time
sys.argv[0] = "-m"  # as python -m has it while it looks for the module
import calince_jax
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=50,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr == "error: interrupted while starting\n"


def test_a_library_user_keeps_the_interrupts(monkeypatch):
  program = "import signal, calince_jax; print(signal.getsignal(2).__name__)"
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
  )
  assert done.stdout == "default_int_handler\n"


@pytest.mark.parametrize(
  "arguments, words",
  [
    (("--config=configs/magic.py",), "configs/magic.py: there is no such file"),
    (("--config=configs",), "--config=configs must be a file *.py"),
    (("--config=README.md",), "--config=README.md must be a file *.py"),
    (("--config=configs/base.py", "--nope=1"), "flag 'nope'"),
    (("--config=BAD",), "BAD line 2: ZeroDivisionError: division by zero"),
    (("--config=SYNTAX",), "SYNTAX line 1: invalid syntax"),
  ],
)
def test_a_wrong_config_beside_an_override_is_one_line(
  arguments, words, tmp_path, capsys, monkeypatch
):
  from absl import flags
  from ml_collections import config_flags

  bad, syntax = tmp_path / "bad.py", tmp_path / "syntax.py"
  bad.write_text("def get_config():\n  return 1 / 0\n")
  syntax.write_text("def = 1\n")

  def named(text):
    return text.replace("BAD", str(bad)).replace("SYNTAX", str(syntax))

  monkeypatch.chdir(ROOT)
  # Alone, a file that is not there is an error when it is used: cli_test.py.
  there = {"--config=BAD", "--config=SYNTAX"} & {*arguments}
  for override in (["--config.batch_size=8"], [])[: 2 if there else 1]:
    argv = ["train", *map(named, arguments), *override]
    monkeypatch.setattr(sys, "argv", argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    with pytest.raises(SystemExit) as ended:
      cli.parse(argv, values)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert named(words) in said
    assert said.startswith("error: ") and said.count("\n") == 1


def test_none_can_be_said_on_a_command_line(monkeypatch):
  """It is the default of this one; another key refuses it when checked."""
  from absl import flags
  from ml_collections import config_flags

  from calince_jax import config as config_lib

  monkeypatch.chdir(ROOT)

  def parsed(*changes):
    argv = ["train", "--config=configs/cali_nce.py", *changes]
    monkeypatch.setattr(sys, "argv", argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    cli.parse(argv, values)
    return values.config.to_dict()

  config = parsed("--config.objective.noise_rate=0.5")
  assert config["objective"]["noise_rate"] == 0.5
  config = parsed("--config.objective.noise_rate=None")
  assert config["objective"]["noise_rate"] is None
  config_lib.check(config)
  with pytest.raises(UserError, match="config.batch_size=None must be"):
    config_lib.check(parsed("--config.batch_size=None"))
