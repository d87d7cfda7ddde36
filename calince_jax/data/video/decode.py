"""Reads a clip of a video file as JPEG frames.

    for t_k = start + k / frame_rate:  the last frame shown at or before t_k

Frames come out as a player shows them (`jpeg.py`). A video either gives its
clip or raises ClipError with a reason for the person; no frame is invented.
A decoding error before the clip's end makes the clip unusable.

Files are untrusted: `workers.py` calls this in child processes.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import av

from calince_jax.data.sources.item import Media
from calince_jax.data.video.clock import TimedFrames
from calince_jax.data.video.jpeg import Encoding, FrameEncoder
from calince_jax.data.video.open import (
  MAX_PIXELS,
  ClipError,
  a_picture,
  is_picture,
  lacks_memory,
  media_size,
  message,
  open_video,
  out_of_memory,
  video_stream,
)

SLACK = 1e-3  # seconds; some containers round time stamps to a millisecond
MAX_OFFSET = 2**62  # FFmpeg's time stamps have 64 bits


@dataclasses.dataclass(frozen=True)
class DecodedClip:
  """JPEG frames of one size.

  Attributes:
    frames: JPEG files, `frame_rate` a second.
    duration: seconds that the frames stand for.
    width, height: of each frame, as shown.
    cut: whether the clip goes on after max_frames.
  """

  frames: list[bytes]
  duration: float
  width: int
  height: int
  cut: bool


def read_clip(
  media: Media,
  start: float | None,
  end: float | None,
  encoding: Encoding,
) -> DecodedClip:
  """Reads the part of a video from `start` to `end`.

  Args:
    media: what holds the video.
    start: seconds of the container's clock; None is the first frame.
    end: seconds; None, or a time after the last frame, is the file's end.
    encoding: how frames are stored.

  Raises:
    ClipError: the clip cannot be used.
  """
  size = media_size(media)
  for seek in (True, False) if start else (False,):
    with open_video(media) as container:
      try:
        clip = _read(container, media, size, start, end, encoding, seek)
      except av.error.FFmpegError:
        if not seek:
          raise
        clip = None  # the format cannot seek: read on from the beginning
      if clip is not None:
        return clip
  raise AssertionError("unreachable: reading without seeking gives a clip")


def hold(
  frames: Iterable[tuple[float, float, Any]],
  *,
  start: float | None,
  end: float | None,
  frame_rate: float,
) -> Iterator[Any]:
  """Yields, for t_k = start + k / frame_rate < end, what is shown at t_k.

  Args:
    frames: (time, duration, frame) in the order of time, seconds.
    start: None is the first frame's time. Before the first frame, that frame
      is shown.
    end: None is the end of the last frame.
    frame_rate: per second.
  """
  k, shown, shown_end = 0, None, -math.inf
  end = math.inf if end is None else end
  for time, duration, frame in frames:
    start = time if start is None else start
    if time + SLACK >= end:
      shown_end = end
      break
    # Times that the frame before covers. Nothing comes before the first one.
    while shown is not None and start + k / frame_rate + SLACK < time:
      yield shown
      k += 1
    shown, shown_end = frame, time + duration
  while shown is not None and start + k / frame_rate + SLACK < min(
    shown_end, end
  ):
    yield shown
    k += 1


def _read(
  container: Any,
  media: Media,
  size: int,
  start: float | None,
  end: float | None,
  encoding: Encoding,
  seek: bool,
) -> DecodedClip | None:
  """Returns the clip, or None if seeking missed its beginning."""
  stream = video_stream(container)
  origin = (container.start_time or 0) / av.time_base
  if seek:
    offset = (start + origin) / float(stream.time_base or math.inf)
    if abs(offset) > MAX_OFFSET:
      return None  # the file's clock is broken: read from the beginning
    container.seek(round(offset), backward=True, stream=stream)
  timed = TimedFrames(container, stream, origin)
  encoder = FrameEncoder(stream, encoding)
  jpegs: list[bytes] = []
  cut = False
  for frame in hold(
    timed, start=start, end=end, frame_rate=encoding.frame_rate
  ):
    if seek and not timed.first_time <= start + SLACK:
      return None
    if len(jpegs) == encoding.max_frames:
      cut = True
      break
    jpegs.append(encoder.encode(frame))
  if seek and not jpegs:
    return None
  if timed.error is not None or timed.ended:
    try:
      _check_end(size, stream, timed, start)
    except ClipError:
      if is_picture(media):
        raise a_picture() from None
      raise
  if not jpegs and end is not None and end - (start or 0.0) <= SLACK:
    raise ClipError(
      "too short",
      f"the clip from {start or 0:g} to {end:g} s is shorter than any frame",
      "check start and end; they are seconds",
    )
  if not jpegs:
    raise ClipError(
      "outside the video",
      f"the clip begins at {start or 0:g} s, the video shows "
      f"{timed.first_time:.2f} to {timed.time + timed.duration:.2f} s",
      "check start and end; they are seconds",
    )
  duration = len(jpegs) / encoding.frame_rate
  return DecodedClip(jpegs, duration, *encoder.shown_size, cut)


def _check_end(
  size: int, stream: Any, timed: TimedFrames, start: float | None
) -> None:
  """Raises ClipError unless the stream ended because the video does.

  Args:
    size: bytes of the video.
    stream, timed: what was read of it.
    start: seconds, see `read_clip`.
  """
  if timed.error is not None and lacks_memory(timed.error):
    raise out_of_memory()
  last = stream.index_entries[-1] if len(stream.index_entries) else None
  missing = last.pos + last.size - size if last else 0
  if missing > 0:
    raise ClipError(
      "cut off",
      f"the file ends {missing:,} bytes before its last frame"
      + (f", at {timed.time:.2f} s" if timed.count else ""),
      "download it again",
    )
  if timed.error is not None:
    raise _explain_undecoded(timed)
  if not timed.count:
    raise ClipError(
      "no frames",
      "it has a video stream without a single frame (the first part of a "
      "stream in pieces, or cut off while downloading)",
      "join it with its other pieces, or download it again",
    )
  if timed.count == 1 and not start:
    raise ClipError(
      "a picture",
      "it holds a single frame: a picture, not a video",
      "remove the row",
    )


def _explain_undecoded(timed: TimedFrames) -> ClipError:
  why = message(timed.error)
  if isinstance(timed.error, IndexError):
    why = "its streams change on the way"
  if not timed.count:
    return ClipError(
      "does not decode",
      f"its first frame cannot be decoded ({why}): the file is encrypted or "
      f"damaged, its frames have more than {MAX_PIXELS:,} pixels, or FFmpeg "
      "cannot decode its codec",
      "check that it plays; download or re-encode it",
    )
  return ClipError(
    "damaged",
    f"it stops decoding after {timed.count} frames, at {timed.time:.2f} s "
    f"({why})",
    "download it again, re-encode it, or end the clip before this time",
  )
