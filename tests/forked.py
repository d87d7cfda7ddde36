"""Runs commands as processes, for the price of one import of the libraries.

`python -m` spends 4 seconds of a core, on a busy machine 12, on the import of
JAX, TensorFlow and their like. A server imports them once, starts no thread,
and forks for each command: the child is a process of its own with the working
directory, environment, flags, streams, signals and exit status of one, and
imports all of ours anew. README's commands and a few others are run by a Python
of their own.
"""

import atexit
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Each child has a parent that waits for it and writes down how it ended.
SERVER = """
import gc, importlib, json, os, runpy, signal, sys
for name in sys.argv[1:]:
  importlib.import_module(name)
tasks = "/proc/self/task"  # of Linux
alone = not os.path.isdir(tasks) or len(os.listdir(tasks)) == 1
assert alone, "threads do not survive a fork"
gc.freeze()
for line in sys.stdin:
  request = json.loads(line)
  reader, writer = os.pipe()
  if os.fork():
    os.close(writer)
    print(os.read(reader, 20).decode(), flush=True)
    os.close(reader)
    os.wait()  # for a child that has left its own child behind
    continue
  if os.fork():
    os._exit(0)
  child = os.fork()
  if child:
    os.write(writer, str(child).encode())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(request["status"] + ".new", "w") as file:
      file.write(str(status))
    os.rename(request["status"] + ".new", request["status"])
    os._exit(0)
  os.close(reader)
  os.close(writer)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  for number, path in ((1, request["out"]), (2, request["err"])):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, number)
    os.close(file)
  signal.signal(signal.SIGINT, signal.default_int_handler)
  os.environ.clear()
  os.environ.update(request["env"])
  os.chdir(request["cwd"])
  path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
  sys.path[:0] = [os.getcwd(), *filter(None, path)]
  exec(request["before"])
  sys.argv = [request["module"], *request["arguments"]]
  runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
  sys.exit(0)
"""

LIBRARIES = (
  "av",
  "array_record.python.array_record_module",
  "clu.metric_writers",
  "flax.linen",
  "jax",
  "jax.experimental.multihost_utils",
  "ml_collections.config_flags",
  "optax",
  "orbax.checkpoint",
  "sentencepiece",
  "tensorflow",
  "tensorflow_datasets",
)


@functools.cache
def _server_folder() -> str:
  folder = tempfile.mkdtemp(prefix="forked-")
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder


def _server_errors() -> Path:
  return Path(_server_folder(), "stderr")


@functools.cache
def _server() -> subprocess.Popen:
  with _server_errors().open("w") as errors:
    server = subprocess.Popen(
      [sys.executable, "-c", SERVER, *LIBRARIES],
      cwd=ROOT,
      # OpenBLAS would start its threads with the import.
      env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
    )
  atexit.register(server.wait)
  atexit.register(server.stdin.close)  # is called first
  return server


class Process:
  """A child of the server, with the methods of `subprocess.Popen`."""

  def __init__(self, pid: int, status: Path, out: Path, err: Path):
    self.pid = pid
    self._status, self._out, self._err = status, out, err

  @property
  def returncode(self) -> int | None:
    """Its exit status, minus the signal that ended it; None: it runs."""
    return int(self._status.read_text()) if self._status.exists() else None

  def poll(self) -> int | None:
    """`returncode`."""
    return self.returncode

  def wait(self, timeout: float) -> int:
    """Waits for its end; `subprocess.TimeoutExpired` after `timeout` s."""
    end = time.monotonic() + timeout
    while self.returncode is None:
      if time.monotonic() > end:
        raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
      time.sleep(0.002)
    return self.returncode

  def communicate(self, timeout: float) -> tuple[str, str]:
    """Its stdout and stderr, once it has ended; see `wait`."""
    self.wait(timeout)
    return self._out.read_text(), self._err.read_text()

  def send_signal(self, number: int) -> None:
    """Nothing, if it has ended."""
    if self.returncode is None:
      with contextlib.suppress(ProcessLookupError):  # it ends just now
        os.kill(self.pid, number)

  def kill(self) -> None:
    """With SIGKILL."""
    self.send_signal(9)


def start(
  module: str,
  *arguments: str,
  out: Path | None = None,
  err: Path | None = None,
  cwd: Path = ROOT,
  env: Mapping[str, str] | None = None,
  before: str = "",
) -> Process:
  """Starts `python -m MODULE ARGUMENTS`.

  Args:
    module: with its package.
    arguments: of the command line.
    out: the file to which stdout is appended; None: a new one.
    err: that of stderr; None: `out`, or a new one.
    cwd: the working directory.
    env: the environment; None: that of the tests.
    before: a program that the process runs first.
  """
  folder = Path(tempfile.mkdtemp(dir=_server_folder()))
  err = err or out or folder / "err"
  out = out or folder / "out"
  request = {
    "module": module,
    "arguments": [str(argument) for argument in arguments],
    "out": str(out),
    "err": str(err),
    "cwd": str(cwd),
    "env": dict(env or os.environ),
    "before": before,
    "status": str(folder / "status"),
  }
  server = _server()
  server.stdin.write(json.dumps(request) + "\n")
  server.stdin.flush()
  pid = server.stdout.readline()
  if not pid:
    raise RuntimeError(f"no server: {_server_errors().read_text()}")
  return Process(int(pid), folder / "status", Path(out), Path(err))


def run(
  module: str, *arguments: str, timeout: float = 300.0, **more
) -> subprocess.CompletedProcess:
  """Runs a command to its end with its output captured; see `start`."""
  process = start(module, *arguments, **more)
  try:
    out, err = process.communicate(timeout)
  finally:
    process.kill()
  return subprocess.CompletedProcess(arguments, process.returncode, out, err)
