"""Small good films in several containers, for videos.py to break."""

import functools
import io
import struct
import tempfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

# container, codec, file name's end, muxer options
GOOD = {
  "mp4": ("mp4", "libx264", ".mp4", {}),
  "faststart": ("mp4", "libx264", ".mp4", {"movflags": "faststart"}),
  "fragments": (
    "mp4",
    "libx264",
    ".mp4",
    {"movflags": "frag_keyframe+empty_moov"},
  ),
  "avi": ("avi", "mpeg4", ".avi", {}),
  "webm": ("webm", "libvpx-vp9", ".webm", {}),
  "mkv": ("matroska", "libvpx", ".mkv", {}),
  "ts": ("mpegts", "mpeg2video", ".ts", {}),
  "flv": ("flv", "flv", ".flv", {}),
  "mov": ("mov", "mjpeg", ".mov", {}),
}
SOUND = ("mp4", "ts", "mkv")  # these have an audio stream as well


def good_files(scratch: Path) -> dict[str, bytes]:
  """One small film in several containers, turned by a matrix in two."""
  good = {}
  for name, (container, codec, suffix, options) in GOOD.items():
    path = scratch / f"good{suffix}"
    film(path, container, codec, options, sound=name in SOUND)
    good[name] = path.read_bytes()
    path.unlink()
  for name in ("mp4", "mov"):
    good[f"{name} turned"] = turned(good[name])
  return good


def film(
  path: Path,
  container: str,
  codec: str,
  options: dict[str, str] | None = None,
  *,
  frames: int = 24,
  rate: int = 12,
  streams: int = 1,
  sound: bool = False,
) -> None:
  """Encodes a moving gradient, a key frame every 8 frames."""
  with av.open(str(path), "w", container, options=options or {}) as output:
    tracks = []
    for _ in range(streams):
      track = output.add_stream(codec, rate=rate)
      track.width, track.height = 96, 64
      track.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
      track.gop_size = 8
      tracks.append(track)
    if sound:
      add_sound(output, "aac" if container != "matroska" else "flac")
    for t in range(frames):
      frame = picture(t).reformat(format=tracks[0].pix_fmt)
      for track in tracks:
        output.mux(track.encode(frame))
    for track in tracks:
      output.mux(track.encode())


def picture(t: int) -> av.VideoFrame:
  """Frame number t, 96 x 64."""
  x, y = np.meshgrid(np.arange(96), np.arange(64))
  image = np.stack([2 * x + 5 * t, 3 * y + t, x + y + 9 * t], axis=-1) % 256
  return av.VideoFrame.from_ndarray(image.astype(np.uint8), "rgb24")


def add_sound(output, codec: str) -> None:
  """Two seconds of silence."""
  track = output.add_stream(codec, rate=8000, layout="mono")
  for k in range(16):
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), "s16")
    sound.sample_rate, sound.pts = 8000, 1000 * k
    output.mux(track.encode(sound))
  output.mux(track.encode())


def turned(data: bytes) -> bytes:
  """An mp4 whose display matrix says a quarter turn."""
  matrix = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 2**30)
  begin = data.index(b"tkhd") + 4 + 40  # of a header of version 0
  return data[:begin] + matrix + data[begin + 36 :]


@functools.cache
def large_film(side: int) -> bytes:
  """Three black frames: few bytes, but many in memory."""
  file = io.BytesIO()
  with av.open(file, "w", "mp4") as output:
    track = output.add_stream("libx264", options={"preset": "ultrafast"})
    track.width = track.height = side
    frame = av.VideoFrame(side, side, "yuv420p")
    for plane in frame.planes:
      plane.update(bytes(plane.buffer_size))
    for t in range(3):
      frame.pts = t
      output.mux(track.encode(frame))
    output.mux(track.encode())
  return file.getvalue()


@functools.cache
def large_picture(kind: str, side: int, count: int) -> bytes:
  """So many black pictures in one file of that kind."""
  pictures = [Image.new("L", (side, side))] * count
  file = io.BytesIO()
  pictures[0].save(file, kind, save_all=True, append_images=pictures[1:])
  return file.getvalue()


@functools.cache
def crowd(container: str, streams: int) -> bytes:
  """A film with many video streams."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "crowd"
    film(path, container, "mpeg4", frames=4, streams=streams)
    return path.read_bytes()
