"""The processes of one run: how they join, and how they end together.

Each process joins within a time limit, or reports what is missing. Then two
threads watch the others: one waits for the message of a process that failed;
one sends heartbeats, and in process 0 checks those of the others. A process
that fails publishes the reason with JAX's coordination service, and the others
end too, each with one line, so that a launcher can start all of them again. JAX
alone would leave them waiting, and then abort.
"""

import contextlib
import dataclasses
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from orbax.checkpoint import multihost

from calince_jax.errors import UserError

DISTRIBUTED = ("off", "auto", "manual")
HINT_SECONDS = 20.0  # of waiting for the others, before a message about it
POLL_MS = 2_000  # of one call that waits for a failure; an end takes so long
READ_SECONDS = 3.0  # for the others to read why a process ends

# Matches the errors of collectives when another process has died.
LOST = re.compile(r"gloo|nccl|connection re|unavailable", re.IGNORECASE)
AGAIN = "the same commands resume from the last checkpoint"

_FAILURE, _HEARTBEATS = "calince_jax/ended", "calince_jax/alive"
_finished = threading.Event()
_ending = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Cluster:
  """How the processes of a run find each other.

  Attributes:
    mode: `off`, one process (or `manual`, where an address is given); `auto`,
      as Cloud TPU, Slurm or another cluster that JAX knows describes itself;
      `manual`, as the next three fields say.
    coordinator_address: HOST:PORT of process 0.
    num_processes: of the whole run; with `auto`, how many are expected.
    process_id: number of this process.
    start_timeout: seconds for all processes to join.
    peer_timeout: seconds without a heartbeat after which a process counts as
      lost.
  """

  mode: str
  coordinator_address: str | None
  num_processes: int | None
  process_id: int | None
  start_timeout: float
  peer_timeout: float


@contextlib.contextmanager
def joined(cluster: Cluster) -> Iterator[None]:
  """Joins the other processes of a run, where there are any.

  Left by an exception, one process of several reports it, publishes it to the
  others, and exits at once: with status 2 for a UserError or OSError, else 1.

  Raises:
    UserError: the fields do not fit together, no cluster is found, or it has
      another number of processes.
  """
  if cluster.mode == "off" and cluster.coordinator_address is not None:
    cluster = dataclasses.replace(cluster, mode="manual")
  _check(cluster)
  if cluster.mode == "off":
    yield
    return
  with _time_limit(cluster):
    _initialize(cluster)
  if cluster.num_processes not in (None, jax.process_count()):
    raise UserError(
      f"--num_processes={cluster.num_processes}, but the cluster has"
      f" {jax.process_count()} process(es); start the same command on every"
      " host of it"
    )
  if jax.process_count() == 1:
    yield
    return
  _finished.clear()
  threads = _start_threads(cluster.peer_timeout)
  try:
    yield
  except BaseException as error:
    _end_by_error(error)
  _finished.set()
  for thread in threads:  # a thread in C++ must not outlive the interpreter
    thread.join()
  _client().key_value_set(_heartbeat(jax.process_index()), "finished", True)


def barrier(name: str, seconds: float) -> None:
  """Waits until every process of the run is here; use each name once."""
  if jax.process_count() > 1:
    _client().wait_at_barrier(f"calince_jax/{name}", round(1e3 * seconds))


def _client() -> Any:
  return multihost.get_jax_distributed_client()


# ---------------------------------------------------------------- start


def _check(cluster):
  address, process_id = cluster.coordinator_address, cluster.process_id
  num_processes = cluster.num_processes
  if cluster.mode == "manual":
    if any(value is None for value in (address, num_processes, process_id)):
      raise UserError(
        "--distributed=manual needs --coordinator_address, --num_processes"
        " and --process_id"
      )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
      raise UserError(f"--coordinator_address={address} is not HOST:PORT")
    if not 0 <= process_id < num_processes:
      raise UserError(
        f"--process_id={process_id} is not one of the {num_processes}"
        " processes, which are counted from 0"
      )
  elif any(value is not None for value in (address, process_id)):
    raise UserError(
      "--coordinator_address and --process_id go with --distributed=manual"
    )
  elif cluster.mode == "off" and num_processes not in (None, 1):
    raise UserError(
      f"--num_processes={num_processes} goes with --distributed=manual or auto"
    )


def _initialize(cluster):
  peer_timeout = max(round(cluster.peer_timeout), 5)
  limits = {
    # A little later than ours, whose messages say more.
    "initialization_timeout": round(cluster.start_timeout) + 30,
    "heartbeat_timeout_seconds": 2 * peer_timeout,
    "shutdown_timeout_seconds": peer_timeout,
  }
  given = ()
  if cluster.mode == "manual":
    given = (cluster.coordinator_address, cluster.num_processes)
    given += (cluster.process_id,)
  try:
    jax.distributed.initialize(*given, **limits)
  except ValueError as error:
    raise UserError(
      f"--distributed={cluster.mode} found no cluster ({error}); start on Cloud"
      " TPU or under srun, or use --distributed=manual"
    ) from error
  except RuntimeError as error:  # the port is taken, for one
    raise UserError(
      f"the processes cannot be joined: {str(error).splitlines()[0]}"
    ) from error


@contextlib.contextmanager
def _time_limit(cluster):
  """Prints what is waited for, and ends the process after `start_timeout`."""
  seconds, address = cluster.start_timeout, cluster.coordinator_address
  who = f"{cluster.num_processes or 'all'} processes"
  where = f" at {address}" if address else ""
  done = threading.Event()

  def watch():
    if done.wait(min(HINT_SECONDS, seconds / 2)):
      return
    _print(f"waiting for {who} of the run to join{where}")
    if not done.wait(seconds - min(HINT_SECONDS, seconds / 2)):
      _print(
        f"error: not {who} of the run have joined{where} within"
        f" {seconds:g} s (--start_timeout); start the same command on every"
        " host, each with its own --process_id, and make sure that process 0"
        " can be reached"
      )
      os._exit(2)

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    done.set()


# ---------------------------------------------------------------- together


def _start_threads(peer_timeout):
  threads = [
    threading.Thread(target=_wait_for_failure, daemon=True),
    threading.Thread(
      target=_send_heartbeats, args=(peer_timeout,), daemon=True
    ),
  ]
  for thread in threads:
    thread.start()
  return threads


def _wait_for_failure():
  """Ends this process when another has failed."""
  while not _finished.is_set():
    try:
      message = _client().blocking_key_value_get(_FAILURE, POLL_MS)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" in str(error):
        continue
      message = f"process 0 of the run is gone; {AGAIN}"
    if not _finished.is_set():
      with _ending:  # unless this process is publishing its own failure
        _exit(message, 1)


def _send_heartbeats(peer_timeout):
  """Sends heartbeats; process 0 ends the run when another sends none."""
  me, others = jax.process_index(), range(1, jax.process_count())
  last = {}  # by process: its last heartbeat, and when it came
  count = 0
  while not _finished.wait(peer_timeout / 10):
    count += 1
    try:
      _client().key_value_set(_heartbeat(me), str(count), True)
      beats = dict(_client().key_value_dir_get(_HEARTBEATS)) if me == 0 else {}
    except jax.errors.JaxRuntimeError:
      return  # process 0 is gone: _wait_for_failure reports it
    now = time.monotonic()
    for process in others if me == 0 else ():
      beat = beats.get(_heartbeat(process))
      if process not in last or last[process][0] != beat:
        last[process] = (beat, now)
      elif beat != "finished" and now - last[process][1] > peer_timeout:
        end_run(
          f"process {process} of the run has sent no heartbeat for"
          f" {peer_timeout:g} s (--peer_timeout); {AGAIN}",
          status=1,
        )


def _heartbeat(process):
  return f"{_HEARTBEATS}/{process}"


def end_run(message: str, *, status: int) -> NoReturn:
  """Ends this process with `message`, and all others of the run with it."""
  with _ending:
    if jax.process_count() > 1:
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(_FAILURE, message, True)
      time.sleep(READ_SECONDS)  # process 0 holds what the others read
    _exit(message, status)


def is_lost_connection(error: BaseException) -> bool:
  """Whether a collective raised `error` because another process has died.

  JAX raises it as one of several types, wherever a value is waited for.
  """
  several = jax.process_count() > 1
  return several and bool(LOST.search(str(error).split("\n")[0]))


def _end_by_error(error):
  me = f"process {jax.process_index()} of the run"
  if isinstance(error, (UserError, OSError)):  # bad input, or a full disk
    end_run(f"{me}: {' '.join(str(error).split())}", status=2)
  if isinstance(error, KeyboardInterrupt):
    end_run(f"{me} was interrupted", status=2)
  if is_lost_connection(error):
    why = str(error).split("\n")[0][:200]
    end_run(f"{me} has lost the others ({why}); {AGAIN}", status=1)
  traceback.print_exception(error)
  end_run(f"{me} ended by {type(error).__name__}: {error}; {AGAIN}", status=1)


def _exit(message, status) -> NoReturn:
  _print(f"error: {message}")
  # The shutdown of JAX would wait for processes that are gone.
  os._exit(status)


def _print(message):
  print(message, file=sys.stderr, flush=True)
