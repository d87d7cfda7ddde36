"""Runs a command of the package many times for the price of one import.

A server imports the package once, and forks for each command line: the child is
a process of its own with the flags, streams and exit status of one. Only for
commands whose import starts no threads.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SERVER = """
import importlib, json, os, runpy, sys, tempfile
module = sys.argv[1]
importlib.import_module(module)
del sys.modules[module]
for line in sys.stdin:
  request = json.loads(line)
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    child = os.fork()
    if not child:
      os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
      os.dup2(out.fileno(), 1)
      os.dup2(err.fileno(), 2)
      exec(request["before"])
      sys.argv = [module, *request["arguments"]]
      runpy.run_module(module, run_name="__main__")
      os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = []
    for file in (out, err):
      file.seek(0)
      texts.append(file.read().decode())
  print(json.dumps([status, *texts]), flush=True)
"""


class Forked:
  """Runs of one command; a context manager."""

  def __init__(self, module: str):
    """Starts the server; `module` is run as `python -m` would."""
    self._server = subprocess.Popen(
      [sys.executable, "-c", SERVER, module],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def __enter__(self) -> "Forked":
    return self

  def __exit__(self, *_) -> None:
    self._server.stdin.close()
    self._server.wait(timeout=60)
    self._server.stdout.close()

  def run(
    self, arguments: Sequence[str], before: str = ""
  ) -> subprocess.CompletedProcess:
    """Runs the command with its output captured.

    Args:
      arguments: of the command line.
      before: a program that the process runs first.
    """
    arguments = [str(argument) for argument in arguments]
    request = {"arguments": arguments, "before": before}
    self._server.stdin.write(json.dumps(request) + "\n")
    self._server.stdin.flush()
    status, out, err = json.loads(self._server.stdout.readline())
    return subprocess.CompletedProcess(arguments, status, out, err)
