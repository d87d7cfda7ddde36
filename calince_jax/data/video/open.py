"""Opens untrusted videos; where one cannot be used, says why in plain words.

Formats that name other files, devices or addresses (playlists) are refused, and
so are frames of more than MAX_PIXELS.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
from av.stream import Disposition

from calince_jax.data.sources.item import Media

MAX_PIXELS = 36_000_000  # a little more than 8K

# Demuxers that open further files or devices, or that read any text as video.
_REFUSED_FORMATS = {
  "alsa", "ass", "concat", "dash", "data", "fbdev", "ffmetadata", "hls",
  "image2", "imf", "kmsgrab", "lavfi", "oss", "rtp", "rtsp", "sap", "sdp",
  "tty", "v4l2", "video4linux2", "vobsub", "x11grab",
}  # fmt: skip
_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"sidx")
_PICTURE_BRANDS = (
  b"avif",
  b"avis",
  b"heic",
  b"heix",
  b"hevc",
  b"mif1",
  b"msf1",
)
_ALLOWED_FORMATS = ",".join(
  sorted(
    name
    for name in av.formats_available
    if not _REFUSED_FORMATS & set(name.split(","))
  )
)


class ClipError(Exception):
  """Why a clip cannot be used; the fields are those of a ledger row."""

  def __init__(self, what: str, why: str, what_to_do: str):
    super().__init__(what, why, what_to_do)
    self.what, self.why, self.what_to_do = what, why, what_to_do


class _Part:
  """The bytes [offset, offset + size) of an open file, as a file to read."""

  def __init__(self, file: BinaryIO, offset: int, size: int):
    self._file, self._offset, self._size, self._at = file, offset, size, 0

  def read(self, count: int = -1) -> bytes:
    left = max(0, self._size - self._at)
    self._file.seek(self._offset + self._at)
    data = self._file.read(left if count < 0 else min(count, left))
    self._at += len(data)
    return data

  def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
    position += (0, self._at, self._size)[whence]
    if position < 0:
      return -1  # what FFmpeg takes for an error
    self._at = position
    return position

  def tell(self) -> int:
    return self._at


@contextlib.contextmanager
def open_bytes(media: Media) -> Iterator[BinaryIO | _Part]:
  """Opens what holds the video, to read bytes from it."""
  with open(media.path, "rb") as file:
    if media.offset is None:
      yield file
    else:
      yield _Part(file, media.offset, media.size)


def media_size(media: Media) -> int:
  """Returns the number of bytes of the video.

  Raises:
    ClipError: there are none, or not all of them.
  """
  try:
    whole = os.path.getsize(media.path)
  except OSError as error:
    raise ClipError(
      "no such file", f"it cannot be read: {error.strerror}", "check the file"
    ) from None
  size = whole if media.offset is None else media.size
  if size == 0:
    raise ClipError("empty file", "the file has 0 bytes", "download it again")
  if media.offset is not None and media.offset + size > whole:
    raise ClipError(
      "cut off",
      f"it should end at byte {media.offset + size:,} of a file that has "
      f"{whole:,} bytes",
      "download that file again",
    )
  return size


@contextlib.contextmanager
def open_video(media: Media) -> Iterator[Any]:
  """Opens an av container for the length of a block.

  Raises:
    ClipError: it is no video that may be opened.
  """
  with contextlib.ExitStack() as stack:
    try:
      file = media.path  # a whole file is FFmpeg's own to read
      if media.offset is not None:
        file = stack.enter_context(open_bytes(media))
      container = stack.enter_context(
        av.open(
          file,
          container_options={
            "format_whitelist": _ALLOWED_FORMATS,
            "protocol_whitelist": "file",
          },
          metadata_errors="replace",
        )
      )
    except (av.error.FFmpegError, OSError, ValueError) as error:
      raise _explain_unopened(media, error) from None
    yield container


def _explain_unopened(media: Media, error: Exception) -> ClipError:
  if lacks_memory(error):
    return out_of_memory()
  if is_picture(media):
    return a_picture()
  try:
    with open_bytes(media) as file:
      head = file.read(512)
      is_mp4 = head[4:8] in _FIRST_BOXES
      reason = _mp4_reason(file) if is_mp4 else None
  except OSError as failure:
    return ClipError(
      "no such file", f"it cannot be read: {failure.strerror}", "check the file"
    )
  if reason is not None:
    return reason
  if b"<html" in head.lower() or b"<!doctype" in head.lower():
    return ClipError(
      "not a video",
      "it is a web page under a video's name",
      "download it again; the server may ask for a log-in",
    )
  if head.startswith(b"#EXTM3U"):
    return ClipError(
      "not a video",
      "it is a playlist that names other files",
      "download the video itself",
    )
  return ClipError(
    "not a video",
    f"it is no video file that FFmpeg knows, or its beginning is damaged "
    f"({message(error)})",
    "check that it plays; download or re-encode it",
  )


def _mp4_reason(file: BinaryIO | _Part) -> ClipError:
  """Follows the boxes of an mp4 file that does not open, to say why."""
  length = file.seek(0, os.SEEK_END)
  names, position, size = set(), 0, 8
  while position < length and size >= 8 and len(names) < 64:
    file.seek(position)
    header = file.read(16)
    size = int.from_bytes(header[:4], "big")
    if size == 1:  # the size follows, in 8 bytes
      size = int.from_bytes(header[8:16], "big")
    if size == 0:  # to the end of the file
      size = length - position
    names.add(header[4:8])
    position += size
  if not names & {b"moov", b"moof"} and position >= length:
    return ClipError(
      "cut off",
      "the index (the moov box) of this mp4 file is missing: it was cut off "
      "while it was downloaded or recorded",
      "download it again",
    )
  return ClipError(
    "damaged",
    "it is an mp4 file whose index cannot be read: it is damaged, encrypted, "
    "or one piece of a stream",
    "check that it plays; download it again, join it with its other pieces, "
    "or re-encode it",
  )


def video_stream(container: Any) -> Any:
  """Returns the stream to decode; cover art is not a video.

  Raises:
    ClipError: there is none that can be decoded.
  """
  cover = Disposition.attached_pic | Disposition.timed_thumbnails
  streams = [s for s in container.streams.video if not s.disposition & cover]
  best = container.streams.best("video")
  if not streams:
    kinds = sorted({stream.type or "unknown" for stream in container.streams})
    raise ClipError(
      "no video stream",
      "no stream of the file is of a kind that FFmpeg knows"
      if kinds == ["unknown"]
      else f"the file holds only {' and '.join(kinds) or 'nothing'}"
      + (" (a cover picture)" if "video" in kinds else ""),
      "check that it is the right file; remove the row",
    )
  stream = best if best in streams else streams[0]
  context = stream.codec_context
  if context is None:
    raise ClipError(
      "unknown codec",
      "FFmpeg has no decoder for its video stream",
      "re-encode it as H.264",
    )
  check_pixels(context.width, context.height)
  context.thread_type = "NONE"  # one process a core is faster
  context.options = {"max_pixels": str(MAX_PIXELS)}
  return stream


def check_pixels(width: int, height: int) -> None:
  """Raises ClipError for a frame of more than MAX_PIXELS."""
  if width * height > MAX_PIXELS:
    raise ClipError(
      "too large",
      f"a frame has {width}x{height} pixels, more than {MAX_PIXELS:,}",
      "re-encode it in a smaller size",
    )


def is_picture(media: Media) -> bool:
  """Whether it is an AVIF or HEIF picture, or a sequence of them.

  They have the boxes of mp4; some open as videos and lack parts of one.
  """
  try:
    with open_bytes(media) as file:
      head = file.read(12)
  except OSError:
    return False
  return head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS


def a_picture() -> ClipError:
  """Returns the reason to give where `is_picture`."""
  return ClipError(
    "a picture",
    "it is an AVIF or HEIF picture, or a sequence of them, not a video",
    "convert it to a video, or remove the row",
  )


def lacks_memory(error: BaseException) -> bool:
  """Returns whether the system refused memory, or a thread for lack of it."""
  refused = (errno.ENOMEM, errno.EAGAIN)
  return isinstance(error, MemoryError) or (
    isinstance(error, OSError) and error.errno in refused
  )


def out_of_memory() -> ClipError:
  """Returns the reason to give where `lacks_memory`."""
  return ClipError(
    "too much memory",
    "decoding it needs more memory than allowed",
    "raise --memory_limit_mb, or re-encode it in a smaller size",
  )


def message(error: BaseException) -> str:
  """Returns FFmpeg's message without number and path."""
  return getattr(error, "strerror", None) or str(error) or type(error).__name__
