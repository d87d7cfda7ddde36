"""The processes of one run: how they find each other, and end together.

Start: each joins within a time limit, or says what is missing. Then two threads
watch: one waits for word that another process has ended with an error, one
gives signs of life, and in process 0 looks for those of the others. Whoever
ends by an error tells why, and the others end too, each with a plain line, so
that whatever starts runs can start the whole again. JAX alone would leave them
waiting, and then abort.
"""

import contextlib
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
HINT_SECONDS = 20.0  # of waiting for others, before a word about it
WORD_MS = 2_000  # of one call that waits for word; an end takes so long
READ_SECONDS = 3.0  # for others to read why a process ends

# What collectives say when a process at the other end has died.
LOST = re.compile(r"gloo|nccl|connection re|unavailable", re.IGNORECASE)
AGAIN = "the same commands go on from the last checkpoint"

_ENDED, _ALIVE = "calince_jax/ended", "calince_jax/alive"
_finished = threading.Event()
_ending = threading.Lock()


@contextlib.contextmanager
def joined(
  distributed: str,
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
  *,
  start_timeout: float,
  peer_timeout: float,
) -> Iterator[None]:
  """Joins the other processes of a run, where there are any.

  Left by an exception, a process of several says what it is, tells the others,
  and ends at once: with status 2 for a UserError or OSError, else 1.

  Args:
    distributed: `off`, one process (or `manual`, where an address is given);
      `auto`, what Cloud TPU, Slurm or another cluster that JAX knows tells of
      itself; `manual`, the arguments below.
    coordinator_address: HOST:PORT of process 0.
    num_processes: of the whole run; with `auto`, how many are expected.
    process_id: this one's number.
    start_timeout: seconds for all to join.
    peer_timeout: seconds without a sign of life after which a process counts
      as lost.

  Raises:
    UserError: the arguments do not fit, no cluster is found, or it has another
      number of processes.
  """
  given = (coordinator_address, num_processes, process_id)
  if distributed == "off" and coordinator_address is not None:
    distributed = "manual"
  _check(distributed, *given)
  if distributed == "off":
    yield
    return
  with _time_limit(start_timeout, given):
    _initialize(distributed, given, start_timeout, peer_timeout)
  if num_processes not in (None, jax.process_count()):
    raise UserError(
      f"--num_processes={num_processes}, but the cluster has"
      f" {jax.process_count()} process(es); start the same command on every"
      " host of it"
    )
  if jax.process_count() == 1:
    yield
    return
  _finished.clear()
  threads = _watch(peer_timeout)
  try:
    yield
  except BaseException as error:
    _end_with(error)
  _finished.set()
  for thread in threads:  # a thread in C++ must not outlive the interpreter
    thread.join()
  _client().key_value_set(_sign(jax.process_index()), "finished", True)


def barrier(name: str, seconds: float) -> None:
  """Waits until every process of the run is here; each name once."""
  if jax.process_count() > 1:
    _client().wait_at_barrier(f"calince_jax/{name}", round(1e3 * seconds))


def _client() -> Any:
  return multihost.get_jax_distributed_client()


# ---------------------------------------------------------------- start


def _check(distributed, coordinator_address, num_processes, process_id):
  given = (coordinator_address, num_processes, process_id)
  if distributed == "manual":
    if any(value is None for value in given):
      raise UserError(
        "--distributed=manual needs --coordinator_address, --num_processes"
        " and --process_id"
      )
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdecimal():
      raise UserError(
        f"--coordinator_address={coordinator_address} is not HOST:PORT"
      )
    if not 0 <= process_id < num_processes:
      raise UserError(
        f"--process_id={process_id} is not one of the {num_processes}"
        " processes, which are counted from 0"
      )
  elif any(value is not None for value in (coordinator_address, process_id)):
    raise UserError(
      "--coordinator_address and --process_id go with --distributed=manual"
    )
  elif distributed == "off" and num_processes not in (None, 1):
    raise UserError(
      f"--num_processes={num_processes} goes with --distributed=manual or auto"
    )


def _initialize(distributed, given, start_timeout, peer_timeout):
  limits = {
    # A little later than ours, which say more.
    "initialization_timeout": round(start_timeout) + 30,
    "heartbeat_timeout_seconds": 2 * max(round(peer_timeout), 5),
    "shutdown_timeout_seconds": max(round(peer_timeout), 5),
  }
  try:
    jax.distributed.initialize(
      *(given if distributed == "manual" else ()), **limits
    )
  except ValueError as error:
    raise UserError(
      f"--distributed={distributed} found no cluster ({error}); start on Cloud"
      " TPU or under srun, or use --distributed=manual"
    ) from error
  except RuntimeError as error:  # the port is taken, for one
    raise UserError(
      f"the processes cannot be joined: {str(error).splitlines()[0]}"
    ) from error


@contextlib.contextmanager
def _time_limit(seconds, given):
  """Says what is waited for, and ends the process after `seconds`."""
  address, number, _ = given
  who = f"{number or 'all'} processes"
  where = f" at {address}" if address else ""
  done = threading.Event()

  def watch():
    if done.wait(min(HINT_SECONDS, seconds / 2)):
      return
    _say(f"waiting for {who} of the run to join{where}")
    if not done.wait(seconds - min(HINT_SECONDS, seconds / 2)):
      _say(
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


def _watch(peer_timeout):
  threads = [
    threading.Thread(target=_wait_for_word, daemon=True),
    threading.Thread(target=_give_signs, args=(peer_timeout,), daemon=True),
  ]
  for thread in threads:
    thread.start()
  return threads


def _wait_for_word():
  """Ends this process when another has ended by an error."""
  while not _finished.is_set():
    try:
      words = _client().blocking_key_value_get(_ENDED, WORD_MS)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" in str(error):
        continue
      words = f"process 0 of the run is gone; {AGAIN}"
    if not _finished.is_set():
      with _ending:  # or this process is the one that tells
        _end(words, 1)


def _give_signs(peer_timeout):
  """Says that this process lives; in process 0, ends the run of a lost one."""
  me, others = jax.process_index(), range(1, jax.process_count())
  seen = {}
  count = 0
  while not _finished.wait(peer_timeout / 10):
    count += 1
    try:
      _client().key_value_set(_sign(me), str(count), True)
      signs = dict(_client().key_value_dir_get(_ALIVE)) if me == 0 else {}
    except jax.errors.JaxRuntimeError:
      return  # process 0 is gone: _wait_for_word says so
    now = time.monotonic()
    for process in others if me == 0 else ():
      sign = signs.get(_sign(process))
      if process not in seen or seen[process][0] != sign:
        seen[process] = (sign, now)
      elif sign != "finished" and now - seen[process][1] > peer_timeout:
        tell(
          f"process {process} of the run has given no sign of life for"
          f" {peer_timeout:g} s (--peer_timeout); {AGAIN}",
          status=1,
        )


def _sign(process):
  return f"{_ALIVE}/{process}"


def tell(words: str, *, status: int) -> NoReturn:
  """Ends this process with `words`, and with it all others of the run."""
  with _ending:
    if jax.process_count() > 1:
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(_ENDED, words, True)
      time.sleep(READ_SECONDS)  # process 0 holds what the others read
    _end(words, status)


def lost_the_others(error: BaseException) -> bool:
  """Whether this is what a collective says when another process has died.

  JAX raises it as one of several types, wherever a value is waited for.
  """
  several = jax.process_count() > 1
  return several and bool(LOST.search(str(error).split("\n")[0]))


def _end_with(error):
  me = f"process {jax.process_index()} of the run"
  if isinstance(error, (UserError, OSError)):  # bad input, or a full disk
    tell(f"{me}: {' '.join(str(error).split())}", status=2)
  if isinstance(error, KeyboardInterrupt):
    tell(f"{me} was interrupted", status=2)
  if lost_the_others(error):
    why = str(error).split("\n")[0][:200]
    tell(f"{me} has lost the others ({why}); {AGAIN}", status=1)
  traceback.print_exception(error)
  tell(f"{me} ended by {type(error).__name__}: {error}; {AGAIN}", status=1)


def _end(words, status) -> NoReturn:
  _say(f"error: {words}")
  # Not through the shutdown of JAX, which waits for those that are gone.
  os._exit(status)


def _say(words):
  print(words, file=sys.stderr, flush=True)
