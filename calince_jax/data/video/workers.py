"""Decodes clips in child processes: a hostile file costs one clip only.

Each worker is a Python process that imports PyAV and little else. It handles
one clip at a time under a memory limit; when it dies or exceeds the time limit,
the clip is lost, and another worker takes its place.

The parent sends JSON and gets back a JSON header with JPEG bytes behind it. No
pickle: what a child sends may come from the file that it has read.
"""

import collections
import contextlib
import dataclasses
import json
import math
import multiprocessing.connection as mpc
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator

import av

from calince_jax.data.sources.item import Media
from calince_jax.data.video.decode import DecodedClip, read_clip
from calince_jax.data.video.jpeg import Encoding
from calince_jax.data.video.open import ClipError, lacks_memory, out_of_memory
from calince_jax.errors import UserError

LOOK_AHEAD = 32  # clips a worker may be ahead of the slowest one
MAX_HELD = 256 << 20  # bytes of frames that may wait for the slowest one
START_LIMIT = 60.0  # seconds for a worker to start
MAX_REPLY = 1 << 30  # bytes
MAX_HEADER = 1 << 20  # bytes of a reply besides its frames
MAX_FILE = 1 << 20  # bytes that a worker may write: its error messages


@dataclasses.dataclass(frozen=True)
class Request:
  """A clip to decode; see `read_clip`."""

  media: Media
  start: float | None
  end: float | None


class DecodeWorkers:
  """A pool of child processes; use as a context manager."""

  def __init__(
    self,
    num_workers: int,
    encoding: Encoding,
    *,
    time_limit: float,
    memory_limit_mb: int,
  ):
    """Makes the pool; workers start when they are needed.

    Args:
      num_workers: at least 1.
      encoding: how frames are stored.
      time_limit: seconds for one clip.
      memory_limit_mb: address space of one worker, in MiB.
    """
    self._workers = [
      _Worker(encoding, time_limit, memory_limit_mb) for _ in range(num_workers)
    ]

  def __enter__(self) -> "DecodeWorkers":
    return self

  def __exit__(self, *_) -> None:
    for worker in self._workers:
      worker.kill()

  def read(
    self, requests: Iterable[Request]
  ) -> Iterator[DecodedClip | ClipError]:
    """Yields the clip of each request, or why there is none, in their order.

    One at a time: close it (`contextlib.closing`) before the next call if it is
    not read to its end.

    Raises:
      UserError: workers do not start.
    """
    requests = enumerate(requests)
    window = LOOK_AHEAD * len(self._workers)
    done: dict[int, DecodedClip | ClipError] = {}
    held = 0  # bytes in `done`
    idle = collections.deque(self._workers)
    busy: dict[_Worker, int] = {}
    given, waiting, more = 0, 0, True  # `waiting`: the next result to yield
    try:
      while True:
        # The request that is waited for is always given: no deadlock.
        while more and idle and given < waiting + window and held <= MAX_HELD:
          index, request = next(requests, (None, None))
          more = request is not None
          if more:
            worker = idle.popleft()
            worker.start(request)
            busy[worker] = index
            given += 1
        while waiting in done:
          result = done.pop(waiting)
          held -= _size(result)
          waiting += 1
          yield result
        if not busy and not more:
          return
        for worker in _wait(busy):
          index = busy.pop(worker)
          done[index] = worker.result()
          held += _size(done[index])
          idle.append(worker)
    finally:
      for worker in busy:  # it would answer the next call
        worker.kill()


def _size(result: DecodedClip | ClipError) -> int:
  """Returns the bytes of its frames."""
  return sum(map(len, getattr(result, "frames", ())))


def _wait(busy: Iterable["_Worker"]) -> list["_Worker"]:
  """Waits for workers that have answered, died or run out of time."""
  busy = list(busy)
  patience = min((w.deadline for w in busy), default=0.0) - time.monotonic()
  ready = mpc.wait([w.pipe for w in busy], max(0.0, patience))
  now = time.monotonic()
  return [w for w in busy if w.pipe in ready or w.deadline <= now]


class _Worker:
  """One child process.

  Attributes:
    pipe: becomes readable when the child answers or dies.
    deadline: of the clip it reads, on the monotonic clock.
  """

  def __init__(
    self, encoding: Encoding, time_limit: float, memory_limit_mb: int
  ):
    self._settings = {
      "encoding": dataclasses.asdict(encoding),
      "time_limit": time_limit,
      "memory_limit_mb": memory_limit_mb,
    }
    self._time_limit = time_limit
    self._process: subprocess.Popen | None = None
    self.pipe: mpc.Connection | None = None
    self.deadline = math.inf

  def start(self, request: Request) -> None:
    if self._process is None:
      self._launch()
    self.deadline = time.monotonic() + self._time_limit
    with contextlib.suppress(OSError):  # it has died: result() explains
      _send_json(self.pipe, dataclasses.asdict(request))

  def result(self) -> DecodedClip | ClipError:
    """Receives the answer, or explains why there is none."""
    try:
      if self.pipe.poll():
        return _unpack(self.pipe.recv_bytes(MAX_REPLY))
    except (EOFError, OSError):
      return self._explain_death()
    self.kill()
    return ClipError(
      "too slow",
      f"reading it took longer than {self._time_limit:g} s",
      "raise --time_limit, re-encode it, or cut it into clips",
    )

  def kill(self) -> None:
    if self._process is not None:
      self._process.kill()
      self._process.wait()
      self.pipe.close()
      self._process = None

  def _explain_death(self) -> ClipError:
    try:
      code = self._process.wait(1.0)
    except subprocess.TimeoutExpired:
      code = 0
    self.kill()
    if code == -signal.SIGKILL:
      return ClipError(
        "too much memory",
        "the process that read it was killed, most likely because the machine "
        "ran out of memory",
        "use fewer --num_workers or a lower --memory_limit_mb, or re-encode it",
      )
    name = signal.Signals(-code).name if code < 0 else f"status {code}"
    return ClipError(
      "crashed the decoder",
      f"the process that read it died ({name})",
      "re-encode it or remove the row",
    )

  def _launch(self) -> None:
    """Starts the child and waits until it is ready to read."""
    self.pipe, theirs = mpc.Pipe()
    package = pathlib.Path(__file__).parents[3]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryFile() as messages, theirs:
      self._process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=messages,
        start_new_session=True,  # Ctrl-C is for the parent alone
      )
      theirs.close()
      try:
        _send_json(self.pipe, self._settings)
        if self.pipe.poll(START_LIMIT):
          self.pipe.recv_bytes(64)
          return
        reason = f"it does not answer within {START_LIMIT:g} s"
      except (EOFError, OSError):
        messages.seek(0)
        lines = messages.read().decode("utf-8", "replace").split("\n")
        reason = [line for line in ["it died", *lines] if line.strip()][-1]
    self.kill()
    raise UserError(
      f"a decoding process does not start: {reason}; is there memory for it "
      f"(memory_limit_mb={self._settings['memory_limit_mb']})?"
    )


# ------------------------------------------------------------ messages


def _unpack_request(data: bytes) -> Request:
  fields = json.loads(data)
  return Request(**fields | {"media": Media(**fields["media"])})


def _send_json(pipe: mpc.Connection, message: dict) -> None:
  pipe.send_bytes(json.dumps(message).encode())


def _pack(result: DecodedClip | ClipError) -> bytes:
  """Returns a JSON header on one line, and the frames behind it."""
  if isinstance(result, ClipError):
    return json.dumps({"error": result.args}).encode() + b"\n"
  header = dataclasses.asdict(result)
  header["frames"] = [len(frame) for frame in result.frames]
  return b"".join([json.dumps(header).encode(), b"\n", *result.frames])


def _unpack(data: bytes) -> DecodedClip | ClipError:
  position = data.index(b"\n") + 1
  header = json.loads(data[:position])
  if "error" in header:
    return ClipError(*header["error"])
  frames = []
  for size in header["frames"]:
    frames.append(data[position : position + size])
    position += size
  return DecodedClip(**header | {"frames": frames})


# ------------------------------------------------------------ the child


def _serve(pipe: mpc.Connection) -> None:
  """Answers requests until the parent goes away."""
  settings = json.loads(pipe.recv_bytes())
  encoding = Encoding(**settings["encoding"])
  limit = settings["memory_limit_mb"] << 20
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, MAX_FILE))
  av.logging.set_level(av.logging.PANIC)
  pipe.send_bytes(b"ready")
  while True:
    try:
      request = _unpack_request(pipe.recv_bytes())
    except EOFError:
      return
    # The parent watches the time; this ends a child that has lost its parent.
    signal.alarm(math.ceil(settings["time_limit"]) + 5)
    reply = _pack(_read_guarded(request, encoding))
    signal.alarm(0)
    pipe.send_bytes(reply)


def _read_guarded(
  request: Request, encoding: Encoding
) -> DecodedClip | ClipError:
  try:
    clip = read_clip(request.media, request.start, request.end, encoding)
    size = _size(clip)
    if size <= MAX_REPLY - MAX_HEADER:
      return clip
    return ClipError(
      "too large",
      f"its {len(clip.frames)} frames take {size:,} bytes as JPEG",
      "cut it into clips, or lower --max_frames or --short_side",
    )
  except ClipError as error:
    return error
  except Exception as error:  # a bug of ours or PyAV's costs one clip only
    if lacks_memory(error):
      return out_of_memory()
    return ClipError(
      "does not decode",
      f"reading it failed in an unforeseen way ({error!r})",
      "re-encode it, and please report this file",
    )


if __name__ == "__main__":
  _serve(mpc.Connection(int(sys.argv[1])))
