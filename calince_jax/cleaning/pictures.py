"""Small animations of clips, for the page."""

import base64
import contextlib
import io
from collections.abc import Sequence

from PIL import Image

from calince_jax.data.records.reader import ClipReader
from calince_jax.data.sources.item import Clip
from calince_jax.data.video.jpeg import Encoding
from calince_jax.data.video.open import ClipError
from calince_jax.data.video.workers import DecodeWorkers, Request

FRAMES = 8
HEIGHT = 112  # pixels
MILLISECONDS = 250  # a frame
WORKERS = 2
ENCODING = Encoding(
  frame_rate=4.0, short_side=HEIGHT, max_frames=120, jpeg_quality=80
)


def animations(
  clips: Sequence[Clip],
  shown: Sequence[int],
  reader: ClipReader | None,
  *,
  time_limit: float = 60.0,
  memory_limit_mb: int = 4096,
) -> list[str]:
  """An animated WebP of each clip, base64; "" of one that cannot be decoded.

  Args:
    clips: of Pairs.
    shown: numbers of the clips that are wanted, in order.
    reader: of the prepared data set whose records they are; None: the videos
      are decoded, in child processes.
    time_limit: seconds for one clip.
    memory_limit_mb: of a decoding process, in MiB.
  """
  if reader is not None:
    return [animation(reader.read([i])[0]["frames"]) for i in shown]
  requests = [
    Request(clips[i].media, clips[i].start, clips[i].end) for i in shown
  ]
  with (
    DecodeWorkers(
      min(WORKERS, max(1, len(shown))),
      ENCODING,
      time_limit=time_limit,
      memory_limit_mb=memory_limit_mb,
    ) as workers,
    contextlib.closing(workers.read(requests)) as results,
  ):
    return [
      "" if isinstance(result, ClipError) else animation(result.frames)
      for result in results
    ]


def animation(frames: Sequence[bytes]) -> str:
  """Frames spread over the clip as a base64 WebP file that plays for ever.

  Args:
    frames: JPEG files in the order of time, at least one.
  """
  count = min(FRAMES, len(frames))
  pictures = []
  for i in range(count):
    picture = Image.open(
      io.BytesIO(frames[(2 * i + 1) * len(frames) // (2 * count)])
    )
    picture = picture.convert("RGB")
    width = max(1, round(picture.width * HEIGHT / picture.height))
    pictures.append(picture.resize((width, HEIGHT)))
  buffer = io.BytesIO()
  pictures[0].save(
    buffer,
    "WEBP",
    save_all=True,
    append_images=pictures[1:],
    duration=MILLISECONDS,
    loop=0,
    quality=60,
  )
  return base64.b64encode(buffer.getvalue()).decode()
