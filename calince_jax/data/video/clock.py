"""When each frame of a stream is shown: stamps of many kinds, made to rise.

A packet has two stamps, when it is decoded (DTS) and when it is shown (PTS).
Some files keep the first alone (AVI; Matroska in its compatibility mode), and
FFmpeg makes the second up: where a codec reorders frames, they are then wrong,
which shows in that they rise from packet to packet. There a frame is shown when
the decoder gives it out, as FFmpeg's command does it.
"""

import collections
import math
from collections.abc import Iterator
from typing import Any

import av

MAX_GAP = 60.0  # seconds; a longer jump in time is a broken time stamp
RESTART = 0.1  # seconds; decoding times that fall by more begin anew
AHEAD = 4  # packets that are looked at before one is decoded
# IndexError: PyAV's own, where streams appear on the way.
ERRORS = (av.error.FFmpegError, OSError, MemoryError, IndexError)


class TimedFrames:
  """Iterates over (time, duration, frame) of a stream; time never falls.

  A stamp below the one before it is that frame's alone, and counts as the one
  before. Where decoding times fall as well, by more than RESTART, or time leaps
  by more than MAX_GAP, another clock has begun: the frame follows the one
  before by one frame period, and so does the clock. So does a frame without
  stamps.

  Attributes:
    first_time: nan before the first frame and where it bears no time stamp.
    time, duration: of the last frame, seconds.
    count: frames so far.
    ended: whether the stream came to its end.
    error: that stopped decoding, or None.
  """

  def __init__(self, container: Any, stream: Any, origin: float):
    """Reads nothing yet.

    Args:
      container: an open av container.
      stream: of it, the one to decode.
      origin: the container's time that counts as 0, seconds.
    """
    self.first_time, self.time, self.duration = math.nan, math.nan, 0.0
    self.count, self.ended, self.error = 0, False, None
    self._container, self._stream = container, stream
    self._shift = -origin
    self._latest_stamp: int | None = None  # of the packets so far
    self._out_of_order = False  # whether a packet's PTS was below it
    self._decoded = -math.inf  # decoding time of the last frame, seconds
    # The decoder holds frames back: decoding times begin anew before time does.
    self._restarting = False
    rate = stream.average_rate or stream.guessed_rate or 25
    self._period = 1.0 / min(max(float(rate), 0.1), 1000.0)

  def __iter__(self) -> Iterator[tuple[float, float, Any]]:
    frames = self._frames()
    while True:
      try:
        frame = next(frames, None)
      except ERRORS as error:
        self.error = error
        return
      if frame is None:
        self.ended = True
        return
      scale = float(frame.time_base or self._stream.time_base or 0)
      self._advance(frame, scale)
      duration = (frame.duration or 0) * scale
      self.duration = duration if 0 < duration <= MAX_GAP else self._period
      self.count += 1
      yield self.time, self.duration, frame

  def _frames(self) -> Iterator[Any]:
    for packet in self._packets():
      yield from packet.decode()

  def _packets(self) -> Iterator[Any]:
    """The packets, a few of which have been looked at ahead."""
    demuxed, waiting = self._container.demux(self._stream), collections.deque()
    while True:
      try:
        packet = next(demuxed, None)
      except ERRORS:
        yield from waiting
        raise
      if packet is None:
        yield from waiting
        return
      waiting.append(packet)
      if packet.pts is not None:
        latest = self._latest_stamp
        self._out_of_order |= latest is not None and packet.pts < latest
        self._latest_stamp = max(packet.pts, latest or packet.pts)
      if len(waiting) > AHEAD:
        yield waiting.popleft()

  def _advance(self, frame: Any, scale: float) -> None:
    """Sets `time` to the frame's."""
    expected = self.time + self._period if self.count else 0.0
    stamp = self._stamp(frame)
    if frame.dts is not None:
      self._restarting |= frame.dts * scale < self._decoded - RESTART
      self._decoded = frame.dts * scale
    if stamp is None:
      self.time = expected
      return
    time = stamp * scale + self._shift
    if not self.count:
      self.first_time = self.time = time
      return
    # Without decoding times a fall of time itself tells.
    allowed = RESTART if frame.dts is None else MAX_GAP
    if self._restarting:
      allowed = 0.0
    if not -allowed <= time - self.time <= MAX_GAP:
      self._shift += expected - time
      time, self._restarting = expected, False
    self.time = max(time, self.time)

  def _stamp(self, frame: Any) -> int | None:
    if self._container.format.name == "avi":
      return frame.dts
    made_up = self._stream.codec_context.has_b_frames and not self._out_of_order
    first, second = frame.pts, frame.dts
    if made_up:
      first, second = second, first
    return second if first is None else first
