"""One process at a time works in a folder; a killed one leaves nothing to mend.

FOLDER/lock.json names its holder: host, process, since when. On one machine,
and on shared disks that know locks, the kernel holds the lock (flock), and
gives it back when the process ends, however that ends. Elsewhere, and in a
bucket, the holder's beats tell that it lives: it writes the file anew every
BEAT seconds, and whoever wants the folder watches for STALE seconds. A holder
that finds another's name in the file has been taken for dead, and ends.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from calince_jax.errors import UserError
from calince_jax.files import in_bucket

NAME = "lock.json"
BEAT = 5.0  # seconds between two beats
WAIT = 0.2  # seconds between two looks at a lock that is waited for
STALE = 30.0  # seconds without a beat after which a holder counts as dead


@dataclasses.dataclass(frozen=True)
class Holder:
  """A process, so that no other one in the world is taken for it.

  Attributes:
    host: its name.
    process: its number.
    since: when it took the lock, UTC.
    kernel: the boot of the host and the process's name space.
    started: when the process was started, in clock ticks since the boot.
    token: a random number.
  """

  host: str
  process: int
  since: str
  kernel: str
  started: str
  token: str

  def describe(self) -> str:
    """For a message."""
    return f"process {self.process} on {self.host}, since {self.since}"


def this_process() -> Holder:
  """The holder that this process would be."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  return Holder(
    host=socket.gethostname(),
    process=os.getpid(),
    since=now,
    kernel=_kernel(),
    started=_started(os.getpid()),
    token=uuid.uuid4().hex,
  )


class FolderHeld(UserError):
  """Another process, which the message names, holds the folder."""


@contextlib.contextmanager
def held(
  folder: str | os.PathLike,
  what: str,
  on_loss: Callable[[str], object],
) -> Iterator[None]:
  """Holds the lock of a folder for the length of the block.

  Args:
    folder: local, which exists, or gs://.
    what: of which there may be one, for the message: "a run".
    on_loss: called from a thread, with a message, where another process has
      taken the folder meanwhile; ends this one.

  Raises:
    FolderHeld: another process holds it.
  """
  me = this_process()
  lock = _Lock(epath.Path(folder) / NAME)
  try:
    lock.take(me, what, str(folder))
    done = threading.Event()
    beats = threading.Thread(
      target=_beat, args=(lock, me, done, on_loss, str(folder)), daemon=True
    )
    beats.start()
    try:
      yield
    finally:
      done.set()
      beats.join()
      lock.give_back(me)
  finally:
    lock.close()


def check_free(folder: str | os.PathLike, what: str) -> None:
  """Raises FolderHeld where a process holds the lock; see `held`."""
  lock = _Lock(epath.Path(folder) / NAME)
  try:
    lock.check(what, str(folder))
  finally:
    lock.close()


@contextlib.contextmanager
def waited_for(
  folder: str | os.PathLike,
  what: str,
  on_loss: Callable[[str], object],
) -> Iterator[None]:
  """As `held`, but waits for the end of a process that holds the lock."""
  said = False
  while True:
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(held(folder, what, on_loss))
      except FolderHeld as error:
        if not said:
          print(f"waiting: {error}", flush=True)
        said = True
      else:
        yield
        return
    time.sleep(WAIT)


def end_process(message: str) -> None:
  """For `on_loss` of a command of one process: says why, and ends with 2."""
  print(f"error: {message}", file=sys.stderr, flush=True)
  os._exit(2)


def _beat(lock, me, done, on_loss, folder):
  count = 0
  while not done.wait(BEAT):
    count += 1
    with contextlib.suppress(OSError):  # a full disk is no reason to end
      other = lock.read()[0]
      if other is not None and other.token != me.token:
        on_loss(
          f"{folder} was taken by {other.describe()}: this process had given no"
          f" sign of life for {STALE:g} s"
        )
        return
      lock.write(me, count)


class _Lock:
  """The file, with the kernel's lock on it where there is one."""

  def __init__(self, path: epath.Path):
    self._path, self._file, self._flocked = path, None, False
    if not in_bucket(path):
      # Neither replaced nor deleted, for the kernel's lock goes with the file.
      flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
      self._file = os.open(path, flags, 0o644)

  def take(self, me: Holder, what: str, folder: str) -> None:
    """Writes `me`; FolderHeld where another holder lives."""
    self.check(what, folder)
    self.write(me, 0)
    if not self._flocked:
      # Two may have come at once: the last to write has it.
      time.sleep(BEAT / 2)
      other, _ = self.read()
      if other is None or other.token != me.token:
        who = "another process" if other is None else other.describe()
        raise FolderHeld(f"{what} has just been started in {folder}: {who}")

  def check(self, what: str, folder: str) -> None:
    """FolderHeld where another holder lives; else has the kernel's lock."""
    refused = False
    if self._file is not None:
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._flocked = True
      except BlockingIOError:
        refused = True
      except OSError:  # a disk without locks
        pass
    other, beat = self.read()
    if refused or (other is not None and self._lives(other, beat, folder)):
      who = "another process" if other is None else other.describe()
      raise FolderHeld(
        f"{what} is at work in {folder}: {who}; wait for its end, or choose"
        " another folder"
      )

  def _lives(self, other: Holder, beat: int, folder: str) -> bool:
    """Whether the holder that the file names is still there."""
    if other.kernel == _kernel():
      # Of this kernel: had it lived, it would hold the kernel's lock.
      return not self._flocked and _started(other.process) == other.started
    print(
      f"{folder} is held by {other.describe()}; watching for {STALE:g} s"
      " whether it still gives signs of life",
      flush=True,
    )
    end = time.monotonic() + STALE
    while time.monotonic() < end:
      time.sleep(min(1.0, BEAT))
      now = self.read()
      if now != (other, beat):
        return now[0] is not None
    return False

  def read(self) -> tuple[Holder | None, int]:
    """The holder that the file names, and its last beat; None for nobody."""
    try:
      if self._file is None:
        content = self._path.read_bytes() if self._path.exists() else b""
      else:
        content = os.pread(self._file, 2**16, 0)
      document: dict[str, Any] = json.loads(content or b"{}")
      beat = document.pop("beat", 0)
      return (Holder(**document) if document else None), beat
    except (ValueError, TypeError, AttributeError):  # half-written, or foreign
      return None, 0

  def write(self, me: Holder, beat: int) -> None:
    document = dataclasses.asdict(me) | {"beat": beat}
    self._put(json.dumps(document).encode() + b"\n")

  def give_back(self, me: Holder) -> None:
    with contextlib.suppress(OSError):
      other, _ = self.read()
      if other is not None and other.token == me.token:
        self._put(b"")

  def close(self) -> None:
    if self._file is not None:
      os.close(self._file)  # which gives the kernel's lock back
      self._file = None

  def _put(self, content: bytes) -> None:
    if self._file is None:
      self._path.write_bytes(content)
      return
    os.pwrite(self._file, content, 0)
    os.ftruncate(self._file, len(content))
    os.fsync(self._file)


def _kernel() -> str:
  """The boot of this machine and the process's name space, "" if not known."""
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return f"{socket.gethostname()}"


def _started(process: int) -> str:
  """When a process was started, in ticks since the boot; "" if there is none.

  A number is given to another process after its own has ended.
  """
  try:
    stat = Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return ""
  return stat.rpartition(")")[2].split()[19]
