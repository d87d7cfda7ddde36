"""Holds the times of frames against FFmpeg's own, in every kind of container.

    python -m benchmarks.hostile.clocks --ffmpeg=/usr/bin/ffmpeg [--count=300]

Films of one to three seconds with other codecs, B-frames, frame rates, offsets,
uneven times and edit lists. FFmpeg's command says when it shows each frame (its
filter showinfo); data/video/clock.py must say the same. OUT/clocks.md is a
table of the largest errors; the exit status is 1 where one is a frame or more.
"""

import dataclasses
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from absl import flags

from calince_jax import cli
from calince_jax.data.sources.item import Media
from calince_jax.data.video.clock import TimedFrames
from calince_jax.data.video.open import open_video, video_stream
from calince_jax.errors import UserError

# container: its codecs, the file name's end
CONTAINERS = {
  "mp4": (("libx264", "libx265", "mpeg4"), ".mp4"),
  "mov": (("libx264", "mjpeg"), ".mov"),
  "matroska": (("libx264", "libvpx", "mpeg4", "mpeg2video"), ".mkv"),
  "webm": (("libvpx-vp9", "libvpx"), ".webm"),
  "avi": (("libx264", "mpeg4", "mjpeg", "ffv1"), ".avi"),
  "mpegts": (("libx264", "mpeg2video"), ".ts"),
  "flv": (("libx264", "flv"), ".flv"),
  "mpeg": (("mpeg2video", "mpeg1video"), ".mpg"),
}
REORDERING = ("libx264", "libx265", "mpeg4", "mpeg2video", "mpeg1video")
RATES = (Fraction(25), Fraction(30000, 1001), Fraction(50))
UNEVEN = ("matroska", "mp4", "mov", "webm", "flv", "mpegts")


@dataclasses.dataclass(frozen=True)
class Kind:
  """How a film is made.

  Attributes:
    container, codec: names of FFmpeg.
    b_frames: the most in a row; 0 for none.
    rate: frames a second.
    offset: time of the first frame, seconds.
    uneven: whether frames are left out at random.
    edited: seconds that an edit list cuts from the beginning.
  """

  container: str
  codec: str
  b_frames: int
  rate: Fraction
  offset: float = 0.0
  uneven: bool = False
  edited: float = 0.0

  @property
  def name(self) -> str:
    """Of the file."""
    words = [self.container, self.codec, f"b{self.b_frames}", self.rate]
    words += [self.offset, "uneven" if self.uneven else "even", self.edited]
    text = "_".join(map(str, words)).replace("/", ":")
    return text + CONTAINERS[self.container][1]


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("out", "runs/clocks", "folder to write")
  flags.DEFINE_string("ffmpeg", "ffmpeg", "FFmpeg's command")
  flags.DEFINE_integer("count", 300, "number of films", 1)
  flags.DEFINE_integer("seed", 0, "seed of the choice", 0)


def kinds() -> Iterator[Kind]:
  """Every kind of film."""
  for container, (codecs, _) in CONTAINERS.items():
    for codec, rate, b_frames, offset, uneven in itertools.product(
      codecs, RATES, (0, 1, 2, 4), (0.0, 1.4), (False, True)
    ):
      if b_frames and codec not in REORDERING:
        continue
      if b_frames > 1 and codec == "mpeg4":
        continue
      if uneven and container not in UNEVEN:
        continue
      if codec.startswith("mpeg1") and rate == 50 and b_frames == 4:
        continue
      yield Kind(container, codec, b_frames, rate, offset, uneven)
      if container in ("mp4", "mov") and not offset:
        yield Kind(container, codec, b_frames, rate, 0.0, uneven, edited=0.5)


def chosen(count: int, seed: int) -> list[Kind]:
  """`count` of all kinds, each container as often as the others."""
  rng = np.random.default_rng(seed)
  groups = [[k for k in kinds() if k.container == name] for name in CONTAINERS]
  groups = [[group[i] for i in rng.permutation(len(group))] for group in groups]
  rounds = itertools.zip_longest(*groups)
  return [kind for turn in rounds for kind in turn if kind][:count]


def make(folder: Path, kind: Kind, rng: np.random.Generator) -> Path:
  """Encodes a film of 1 to 3 seconds, 64 x 48 pixels of noise and a ramp."""
  path = folder / kind.name
  count = int(kind.rate * rng.integers(1, 4))
  base = 1 / kind.rate
  begin = round(kind.offset * kind.rate)
  steps = rng.integers(1, 4, count) if kind.uneven else np.ones(count, int)
  options = {"bf": str(kind.b_frames)}
  if kind.codec == "libx265":
    options = {"x265-params": f"bframes={kind.b_frames}:log-level=none"}
  if kind.codec.startswith("libvpx"):
    options = {"deadline": "realtime", "cpu-used": "8"}
  muxer = {"avoid_negative_ts": "disabled"} if kind.edited else {}
  with av.open(
    str(path), "w", kind.container, container_options=muxer
  ) as output:
    sound = None
    if kind.offset and kind.container != "avi":
      # A stream from 0 on, without which the first picture would be 0.
      sound = output.add_stream(
        "libopus" if kind.container == "webm" else SOUND[kind.container],
        rate=48000 if kind.container in ("webm", "mpeg") else 44100,
        layout="mono",
      )
    track = output.add_stream(kind.codec, rate=kind.rate, options=options)
    track.width, track.height = 64, 48
    track.pix_fmt = "yuvj420p" if kind.codec == "mjpeg" else "yuv420p"
    track.time_base = track.codec_context.time_base = base
    track.gop_size = int(rng.integers(5, 30))
    if sound:
      silence(output, sound, kind.offset + 0.5)
    shown = begin
    for k in range(count):
      frame = av.VideoFrame.from_ndarray(picture(k, rng), "rgb24")
      frame = frame.reformat(format=track.pix_fmt)
      frame.pts, frame.time_base = shown, base
      shown += int(steps[k])
      for packet in track.encode(frame):
        shift(packet, kind)
        output.mux(packet)
    for packet in track.encode():
      shift(packet, kind)
      output.mux(packet)
  return path


SOUND = {
  "mp4": "aac", "mov": "aac", "matroska": "aac", "mpegts": "mp2",
  "flv": "aac", "mpeg": "mp2",
}  # fmt: skip


def shift(packet: av.Packet, kind: Kind) -> None:
  """What lies before 0 is cut by the edit list that the muxer writes."""
  if kind.edited:
    by = round(kind.edited / packet.time_base)
    packet.pts -= by
    packet.dts -= by


def silence(output, track, seconds: float) -> None:
  """Encodes so many seconds of it from 0 on."""
  rate, size = track.rate, track.codec_context.frame_size or 960
  form = track.codec_context.format.name
  for k in range(int(seconds * rate) // size + 1):
    sound = av.AudioFrame(form, "mono", size)
    for plane in sound.planes:
      plane.update(bytes(plane.buffer_size))
    sound.sample_rate, sound.pts = rate, k * size
    sound.time_base = Fraction(1, rate)
    output.mux(track.encode(sound))
  output.mux(track.encode())


def picture(k: int, rng: np.random.Generator) -> np.ndarray:
  """uint8 [48, 64, 3]: something moves, so that there are B-frames."""
  x, y = np.meshgrid(np.arange(64), np.arange(48))
  level = (3 * x + 5 * y + 7 * k) % 256
  level[:8, :8] = rng.integers(0, 256)
  return np.repeat(level[..., None], 3, axis=2).astype(np.uint8)


# ------------------------------------------------------------ two clocks


def our_times(path: Path) -> list[float]:
  """When data/video shows each frame, seconds."""
  with open_video(Media(str(path))) as container:
    stream = video_stream(container)
    origin = (container.start_time or 0) / av.time_base
    timed = TimedFrames(container, stream, origin)
    times = [time for time, _, _ in timed]
    if timed.error:
      raise UserError(f"{path} does not decode: {timed.error}")
    return times


def their_times(path: Path, ffmpeg: str) -> list[float]:
  """When FFmpeg's command shows each frame, seconds."""
  command = [ffmpeg, "-hide_banner", "-nostdin", "-i", str(path)]
  command += [
    "-map",
    "0",
    "-vf",
    "showinfo",
    "-fps_mode",
    "passthrough",
    "-f",
    "null",
    "-",
  ]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise UserError(f"{ffmpeg} fails: {done.stderr[-500:]}")
  times = re.findall(r"\bn: *\d+ pts: *\S+ +pts_time:(\S+)", done.stderr)
  return [float(time) for time in times]


def error(ours: Sequence[float], theirs: Sequence[float]) -> float:
  """The largest difference, seconds; infinite where the frames differ.

  Where FFmpeg's times fall, no player goes back.
  """
  if len(ours) != len(theirs):
    return float("inf")
  shown = np.maximum.accumulate(theirs)
  return float(np.abs(np.subtract(ours, shown)).max(initial=0.0))


def main() -> None:
  """Makes the films, compares the clocks, writes the table."""
  F = flags.FLAGS
  out = Path(F.out)
  (out / "films").mkdir(parents=True, exist_ok=True)
  rows, rng = [], np.random.default_rng(F.seed)
  for kind in chosen(F.count, F.seed):
    path = make(out / "films", kind, rng)
    ours, theirs = our_times(path), their_times(path, F.ffmpeg)
    rows.append((kind, error(ours, theirs) * float(kind.rate)))
  text = table(rows)
  (out / "clocks.md").write_text(text + "\n")
  print(text)
  wrong = [(kind.name, frames) for kind, frames in rows if not frames < 1]
  if wrong:
    print("\n".join(f"{name}: {frames:.2f} frames" for name, frames in wrong))
    sys.exit(1)


def table(rows: Sequence[tuple[Kind, float]]) -> str:
  """Markdown: a row a container."""
  lines = ["| container | codecs | films | largest error, frames |"]
  lines.append("|---|---|---|---|")
  for name, (codecs, _) in CONTAINERS.items():
    mine = [frames for kind, frames in rows if kind.container == name]
    if mine:
      lines.append(
        f"| {name} | {', '.join(codecs)} | {len(mine)} | {max(mine):.2f} |"
      )
  worst = max(frames for _, frames in rows)
  lines += ["", f"{len(rows)} films; the largest error is {worst:.2f} frames."]
  return "\n".join(lines)


if __name__ == "__main__":
  define_flags()
  cli.run(main)
