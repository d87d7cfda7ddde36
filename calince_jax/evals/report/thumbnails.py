"""Pictures of clips for the report."""

import base64
import io
from collections.abc import Sequence

from PIL import Image


def film_strip(frames: Sequence[bytes], height: int = 96) -> str:
  """Three frames of a clip side by side, as a base64 JPEG file.

  Args:
    frames: JPEG files in the order of time, at least one.
    height: of the strip, in pixels.
  """
  n = len(frames)
  pictures = [
    Image.open(io.BytesIO(frames[i])).convert("RGB")
    for i in (n // 6, n // 2, n - 1 - n // 6)
  ]
  width = round(pictures[0].width * height / pictures[0].height)
  strip = Image.new("RGB", (3 * width, height))
  for place, picture in enumerate(pictures):
    strip.paste(picture.resize((width, height)), (place * width, 0))
  buffer = io.BytesIO()
  strip.save(buffer, "JPEG", quality=85)
  return base64.b64encode(buffer.getvalue()).decode()
