"""Encodes frames as JPEG: upright, square pixels, 8-bit RGB, one size."""

import dataclasses
import io
import math
from typing import Any

import av
import numpy as np
from PIL import Image

from calince_jax.data.video.open import (
  ClipError,
  check_pixels,
  lacks_memory,
  message,
  out_of_memory,
)

MAX_ASPECT = 20.0  # of the picture as shown
MAX_PIXEL_ASPECT = 4.0  # of one pixel; beyond it the header is not believed


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How frames are stored.

  Attributes:
    frame_rate: frames per second.
    short_side: upper bound of the shorter side in pixels; never enlarged.
    max_frames: of a longer clip only the first frames are kept.
    jpeg_quality: 1 to 95.
  """

  frame_rate: float = 8.0
  short_side: int = 128
  max_frames: int = 480
  jpeg_quality: int = 90


class FrameEncoder:
  """Encodes frames in one size; a frame that is repeated is encoded once.

  Attributes:
    shown_size: (width, height) of the files.
  """

  def __init__(self, stream: Any, encoding: Encoding):
    self.shown_size = (0, 0)
    self._stream, self._encoding = stream, encoding
    self._size, self._matrix = (0, 0), (1, 0, 0, 1)
    self._frame, self._jpeg = None, b""

  def encode(self, frame: Any) -> bytes:
    """Returns an av.VideoFrame as a JPEG file; raises ClipError."""
    if frame is not self._frame:
      if self._frame is None:
        self._measure(frame)
      self._frame, self._jpeg = frame, self._encode(frame)
    return self._jpeg

  def _measure(self, frame: Any) -> None:
    """Takes the size and the rotation of all frames from the first."""
    aspect = float(self._stream.sample_aspect_ratio or 1)
    if not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
      aspect = 1.0
    self._size = stored_size(
      frame.width, frame.height, aspect, self._encoding.short_side
    )
    self._matrix = _display_matrix(frame)
    turn = -1 if _is_transposed(self._matrix) else 1
    self.shown_size = self._size[::turn]

  def _encode(self, frame: Any) -> bytes:
    check_pixels(frame.width, frame.height)
    try:
      image = _to_rgb(frame, *self._size)
    except (av.error.FFmpegError, ValueError) as error:
      if lacks_memory(error):
        raise out_of_memory() from None
      raise ClipError(
        "does not decode",
        f"its pixel format {frame.format.name} cannot be converted to RGB "
        f"({message(error)})",
        "re-encode it as H.264",
      ) from None
    image = np.ascontiguousarray(upright(image, self._matrix))
    file = io.BytesIO()
    quality = self._encoding.jpeg_quality
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _to_rgb(frame: Any, width: int, height: int) -> np.ndarray:
  """Returns uint8 [height, width, 3], transparency over black."""
  form = frame.format
  has_alpha = form.has_palette or any(c.is_alpha for c in form.components)
  image = frame.reformat(
    width=width,
    height=height,
    format="rgba" if has_alpha else "rgb24",
    interpolation="BICUBIC" if frame.width <= width else "AREA",
    threads=1,
  ).to_ndarray()
  if has_alpha:
    alpha = image[..., 3:].astype(np.uint16)
    image = (image[..., :3] * alpha // 255).astype(np.uint8)
  return image


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
  """Returns (a, b, c, d) of the frame's display matrix, see `upright`."""
  try:
    side_data = list(frame.side_data)
  except ValueError:
    # PyAV 18 does not know some kinds of side data of FFmpeg 8, and then gives
    # none at all. The angle it still knows; mirroring is lost.
    angle = math.radians(frame.rotation)  # counter-clockwise
    cos, sin = round(math.cos(angle)), round(math.sin(angle))
    return cos, -sin, sin, cos
  for data in side_data:
    if data.type.name == "DISPLAYMATRIX":
      a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
      if a or b or c or d:
        return a, b, c, d
  return 1, 0, 0, 1


def _is_transposed(matrix: tuple[int, int, int, int]) -> bool:
  a, b, c, d = matrix
  return abs(b) + abs(c) > abs(a) + abs(d)


def upright(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
  """Turns a picture as the display matrix says.

  Args:
    image: [H, W, 3].
    matrix: (a, b, c, d): pixel (x, y) is shown at (a x + c y, b x + d y), y
      downwards; the nearest of the eight right-angled turns and mirrorings.

  Returns:
    [H, W, 3] or [W, H, 3].
  """
  a, b, c, d = matrix
  if _is_transposed(matrix):
    image = image.transpose(1, 0, 2)  # [W, H, 3]
    flip_x, flip_y = c < 0, b < 0
  else:
    flip_x, flip_y = a < 0, d < 0
  return image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def stored_size(
  width: int, height: int, pixel_aspect: float, short_side: int
) -> tuple[int, int]:
  """Returns (width, height) of the stored picture, before it is turned.

  Args:
    width, height: of the coded picture.
    pixel_aspect: width of a pixel over its height.
    short_side: upper bound of the shorter side; nothing is enlarged but a side
      along which pixels are wide.

  Raises:
    ClipError: the picture is too elongated.
  """
  shown_width, shown_height = width * pixel_aspect, float(height)
  short = min(shown_width, shown_height)
  if max(shown_width, shown_height) > MAX_ASPECT * short:
    raise ClipError(
      "odd size",
      f"the picture is {width}x{height}, too elongated to be a video",
      "check the file; re-encode it if it is right",
    )
  scale = min(1.0, short_side / short)
  return max(1, round(shown_width * scale)), max(1, round(shown_height * scale))
