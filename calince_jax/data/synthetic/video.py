"""Draws a synthetic scene, and writes frames as a small H.264 file."""

import os
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from calince_jax.data.synthetic import scene as synthetic_scene

FRAME_RATE = 8

# The same bytes on any machine and under any load. One thread is not enough:
# x264 chooses its routines by the CPU, those of the macroblock tree use an
# approximate reciprocal, and with AVX-512 small pictures came out differently
# from one time to the next. So it gets its routines in C, and the scaler the
# exact ones.
ENCODING = {"preset": "veryfast", "crf": "23", "x264-params": "asm=0"}
SCALING = (
  Interpolation.BILINEAR | Interpolation.BITEXACT | Interpolation.ACCURATE_RND
)


def _exact(function, *angles):
  """float32 of the function in float64: float32 ones depend on the CPU."""
  return function(*(np.float64(x) for x in angles)).astype(np.float32)


def _star(u, v):
  """Signed side of a star's edge, after folding all ten half-points on one."""
  sector = np.pi / 5
  angle = np.abs((_exact(np.arctan2, u, v) + sector) % (2 * sector) - sector)
  radius = np.hypot(u, v)
  inner = 0.45 * np.array([np.cos(sector), np.sin(sector)])
  edge = inner - (1.1, 0)  # from the outer point to the inner corner
  normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
  return normal[0] * (radius * _exact(np.cos, angle) - 1.1) + normal[1] * (
    radius * _exact(np.sin, angle)
  )


# Distances to the outline, negative inside, in radii; v points upwards.
OUTLINES = {
  "circle": lambda u, v: np.hypot(u, v) - 0.92,
  "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.78,
  "triangle": lambda u, v: (
    np.maximum(np.abs(u) * 0.866 + v * 0.5, -v - 0.05) - 0.55
  ),
  "star": _star,
  "cross": lambda u, v: np.minimum(
    np.maximum(np.abs(u) - 0.3, np.abs(v) - 0.98),
    np.maximum(np.abs(u) - 0.98, np.abs(v) - 0.3),
  ),
  "heart": lambda u, v: np.minimum(
    (np.abs(u) + np.abs(v + 0.12) - 0.86) * 0.707,
    np.hypot(np.abs(u) - 0.43, v - 0.31) - 0.52,
  ),
  "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.24,
  "crescent": lambda u, v: np.maximum(
    np.hypot(u, v) - 1.0, 0.8 - np.hypot(u - 0.5, v)
  ),
}

# How dark each point of a thing is, before clipping to [0, 1].
PATTERNS = {
  "plain": lambda u, v: np.zeros_like(u),
  "striped": lambda u, v: 0.5 + 2 * _exact(np.sin, 7.5 * v),
  "dotted": lambda u, v: (
    2 * (_exact(np.cos, 9 * u) + _exact(np.cos, 9 * v) - 0.4)
  ),
  "checked": lambda u, v: (
    0.5 + 3 * _exact(np.sin, 5.5 * u) * _exact(np.sin, 5.5 * v)
  ),
}


def render(
  scene: synthetic_scene.Scene,
  *,
  size: int = 64,
  num_frames: int = synthetic_scene.NUM_FRAMES,
  camera_noise: bool = True,
) -> np.ndarray:
  """Draws a scene.

  Args:
    scene: what to draw.
    size: height and width in pixels.
    num_frames: how many moments, evenly spaced over the clip.
    camera_noise: shake, flicker and pixel noise; the background stays. A hard
      scene has none.

  Returns:
    uint8 [num_frames, size, size, 3].
  """
  rng = np.random.default_rng([scene.seed, 0])
  camera_noise &= scene.style != "hard"
  row, column = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size
  if scene.style == "hard":
    background = np.full((size, size, 3), rng.uniform(2, 14), np.float32)
  elif scene.style == "plain":
    background = np.full((size, size, 3), rng.uniform(60, 125), np.float32)
  else:
    background = _background(rng, row, column)
  video = np.repeat(background[None], num_frames, axis=0)  # [T, H, W, 3]
  shake = rng.normal(0, 0.008, (num_frames, 2)) * camera_noise
  for thing in reversed(scene.things):  # the main one in front
    _draw(video, thing, shake, row, column)
  if camera_noise:
    video *= rng.normal(1, 0.03, (num_frames, 1, 1, 1)).astype(np.float32)
    grain = rng.standard_normal((*video.shape[:3], 1), dtype=np.float32)
    video += np.float32(rng.uniform(2, 8)) * grain
  return np.clip(video + 0.5, 0, 255).astype(np.uint8)


def _background(rng, row, column) -> np.ndarray:
  """Returns muted float32 [H, W, 3]: two tones, and a slow wave over them."""
  grey = rng.uniform(60, 125, (2, 1))
  tones = (grey + rng.uniform(-18, 18, (2, 3))).astype(np.float32)
  angle, wave_angle, phase = rng.uniform(0, 2 * np.pi, 3)
  slope = np.cos(angle) * (column - 0.5) + np.sin(angle) * (row - 0.5)
  mix = (0.5 + 0.7 * slope)[..., None]
  wave = np.cos(wave_angle) * column + np.sin(wave_angle) * row
  ripple = 7 * np.sin(rng.uniform(5, 14) * wave + phase)[..., None]
  return (tones[0] * mix + tones[1] * (1 - mix) + ripple).astype(np.float32)


def _draw(video, thing: synthetic_scene.Thing, shake, row, column) -> None:
  """Paints one thing over video float32 [T, H, W, 3], in place."""
  centre, radius, angle, visible = synthetic_scene.track(thing, len(video))
  centre = centre + shake  # [T, 2]
  reach = 1.15 * radius[:, None]
  left, top = np.floor(np.min(centre - reach, axis=0) * len(row)).astype(int)
  right, bottom = np.ceil(np.max(centre + reach, axis=0) * len(row)).astype(int)
  box = np.s_[max(top, 0) : bottom, max(left, 0) : right]  # where it ever is
  x, y, cos, sin, radius, visible = (
    a.astype(np.float32)[:, None, None]
    for a in (*centre.T, np.cos(angle), np.sin(angle), radius, visible)
  )
  across, down = (column[box] - x) / radius, (row[box] - y) / radius
  u, v = cos * across + sin * down, sin * across - cos * down  # [T, h, w]
  distance = OUTLINES[thing.shape](u, v) * (radius * len(row))  # pixels
  cover = np.clip(0.5 - distance, 0, 1) * visible
  inside = np.clip(-distance, 0, 1)  # a plain rim keeps the outline
  dark = 0.75 * inside * np.clip(PATTERNS[thing.texture](u, v), 0, 1)
  colour = np.array(synthetic_scene.COLOURS[thing.colour], np.float32)
  painted = video[:, *box]
  painted += cover[..., None] * ((1 - dark)[..., None] * colour - painted)


def write_video(
  path: Path, frames: np.ndarray, *, frame_rate: int = FRAME_RATE
) -> None:
  """Encodes uint8 [T, H, W, 3] (even H and W) as H.264; appears whole."""
  part = path.with_name(path.name + ".part")
  with av.open(str(part), "w", format="mp4") as container:
    stream = container.add_stream("libx264", frame_rate, options=ENCODING)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.gop_size = frame_rate  # one second: cheap to seek
    stream.codec_context.max_b_frames = 0
    stream.codec_context.thread_count = 1
    scaler = VideoReformatter()
    for frame in frames:
      picture = scaler.reformat(
        av.VideoFrame.from_ndarray(frame, format="rgb24"),
        format=stream.pix_fmt,
        interpolation=SCALING,
        threads=1,
      )
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
  os.replace(part, path)
