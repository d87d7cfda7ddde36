"""The time of each frame, in each kind of file, as FFmpeg's command has it.

benchmarks/hostile/clocks.py compares with the command itself; here the times
are those that were written.
"""

import numpy as np
import pytest

from benchmarks.hostile import clocks
from benchmarks.hostile.clocks import Kind, our_times
from calince_jax.data.sources.item import Media
from calince_jax.data.video import decode
from calince_jax.data.video.jpeg import Encoding

RATE = clocks.RATES[0]
KINDS = [
  Kind(container, codec, b_frames, RATE, uneven=uneven)
  for container, (codecs, _) in clocks.CONTAINERS.items()
  for codec in codecs
  if codec != "libx265"
  for b_frames, uneven in ((0, False), (2, False), (2, True))
  if (not b_frames or codec in clocks.REORDERING)
  and not (b_frames > 1 and codec == "mpeg4")
  and not (uneven and container not in clocks.UNEVEN)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_frames_are_shown_when_they_were_written(tmp_path, kind):
  path = clocks.make(tmp_path, kind, np.random.default_rng(1))
  times = np.array(our_times(path)) * float(RATE)
  steps = np.diff(times)
  allowed = (1, 2, 3) if kind.uneven else (1,)
  assert len(times) >= 25
  assert all(min(abs(step - np.array(allowed))) < 0.1 for step in steps), steps
  assert 0 <= times[0] <= 4  # of decoding ahead, where it alone is known


@pytest.mark.parametrize("b_frames", [0, 1, 2, 4])
def test_h264_in_avi_lasts_as_long_as_it_was_made(tmp_path, b_frames):
  """x264's default is three B-frames; 10 s of it were read as 24 s."""
  kind = Kind("avi", "libx264", b_frames, RATE)
  path = clocks.make(tmp_path, kind, np.random.default_rng(3))
  seconds = len(our_times(path)) / float(RATE)
  clip = decode.read_clip(Media(str(path)), None, None, Encoding(8.0, 48))
  assert abs(clip.duration - seconds) < 0.2


class FakeFrame:
  time_base, duration = 1 / 100, 4

  def __init__(self, pts, dts):
    self.pts, self.dts = pts, dts


class FakeStream:
  time_base, average_rate, guessed_rate = 1 / 100, 25, 25

  class codec_context:
    has_b_frames = False


class FakeContainer:
  """Gives frames of these stamps, a packet each."""

  class format:
    name = "matroska"

  def __init__(self, stamps):
    self._stamps = stamps

  def demux(self, _):
    for pts, dts in self._stamps:
      packet = FakeFrame(pts, dts)
      packet.decode = lambda packet=packet: [packet]
      yield packet


def times_of(stamps):
  timed = clocks.TimedFrames(FakeContainer(stamps), FakeStream(), 0.0)
  return [round(100 * time) for time, _, _ in timed]


def test_a_stamp_that_falls_is_the_frames_alone():
  stamps = [(4 * k, 4 * k) for k in range(100)]
  for k in range(10, 100, 10):  # each shows 80 ms too early
    stamps[k] = (4 * k - 8, 4 * k)
  times = times_of(stamps)
  assert times == sorted(times)
  assert max(abs(t - 4 * k) for k, t in enumerate(times)) <= 4
  assert times[-1] == 396


def test_a_clock_that_begins_anew_goes_on():
  stamps = [(4 * k, 4 * k) for k in range(20)] * 2
  assert times_of(stamps) == [4 * k for k in range(40)]
  assert times_of([(p, None) for p, _ in stamps]) == [4 * k for k in range(40)]


def test_a_leap_is_a_broken_stamp():
  stamps = [(0, 0), (4, 4), (10**9, 10**9), (10**9 + 4, 10**9 + 4)]
  assert times_of(stamps) == [0, 4, 8, 12]
