"""clips: what a player shows is what is read; the rest has a reason."""

import dataclasses
import io
import os
import struct
import threading
import time
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from benchmarks.hostile.films import GOOD, SOUND, film
from calince_jax.data.sources.item import Media
from calince_jax.data.video import decode
from calince_jax.data.video.decode import hold
from calince_jax.data.video.jpeg import Encoding, stored_size, upright
from calince_jax.data.video.open import ClipError
from calince_jax.data.video.workers import DecodeWorkers, Request

RATE = 8
PLAIN = Encoding(frame_rate=RATE, short_side=512, jpeg_quality=95)


def read_clip(path, start, end, encoding):
  return decode.read_clip(Media(str(path)), start, end, encoding)


def grey(level, width=64, height=48):
  return np.full((height, width, 3), level, np.uint8)


def write_video(
  path,
  images,
  *,
  codec="libx264",
  pixels="yuv420p",
  times=None,
  turn=None,
  aspect=None,
  options=None,
  muxer=None,
  base=1000,
):
  """Writes uint8 images [H, W, 3 or 4]; `times` in 1/base s."""
  form = "rgba" if images[0].shape[2] == 4 else "rgb24"
  with av.open(str(path), "w", options=muxer or {}) as container:
    stream = container.add_stream(codec, rate=RATE, options=options or {})
    stream.height, stream.width = images[0].shape[:2]
    stream.pix_fmt = pixels
    stream.time_base = stream.codec_context.time_base = Fraction(1, base)
    if aspect:
      stream.codec_context.sample_aspect_ratio = aspect
    if turn:
      stream.set_display_rotation(turn[0], hflip=turn[1])
    for k, image in enumerate(images):
      frame = av.VideoFrame.from_ndarray(image, format=form)
      frame.pts = times[k] if times else k * base // RATE
      frame.time_base = Fraction(1, base)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def pixels(jpeg):
  return np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)


def levels(clip):
  return [round(pixels(jpeg).mean()) for jpeg in clip.frames]


def assert_levels(clip, expected):
  assert len(clip.frames) == len(expected)
  np.testing.assert_allclose(levels(clip), expected, atol=3)


def reason(path, start=None, end=None, encoding=PLAIN):
  with pytest.raises(ClipError) as error:
    read_clip(path, start, end, encoding)
  assert error.value.why and error.value.what_to_do
  return error.value


# ------------------------------------------------------------ sampling


@pytest.mark.parametrize(
  ("start", "end", "rate"),
  [
    (None, None, 2.0),
    (None, 3.0, 3.0),
    (0.0, None, 2.0),
    (1.3, 3.7, 4.0),
    (2.0, 9.0, 1.0),
    (4.6, 5.0, 8.0),
    (7.0, 8.0, 8.0),
  ],
)
def test_hold_shows_the_last_frame_at_or_before(start, end, rate):
  times = [0.5, 0.75, 1.5, 1.6, 3.0, 4.5]
  frames = [(t, 0.5, i) for i, t in enumerate(times)]
  first = times[0] if start is None else start
  last = min(5.0, 99.0 if end is None else end)
  expected = []
  for k in range(100):
    t = first + k / rate
    if t < last:
      before = [i for i, time in enumerate(times) if time <= t]
      expected.append(max(before, default=0))
  got = hold(frames, start=start, end=end, frame_rate=rate)
  assert list(got) == expected


def test_hold_reads_no_further_than_it_must():
  seen = []

  def frames():
    for k in range(100):
      seen.append(k)
      yield k / 10, 0.1, k

  list(hold(frames(), start=None, end=1.0, frame_rate=10))
  assert len(seen) == 11


def test_variable_frame_rate_is_sampled_by_time(tmp_path):
  times = [0, 40, 500, 520, 540, 1250]
  images = [grey(40 * k) for k in range(6)]
  path = write_video(tmp_path / "v.mkv", images, times=times)
  clip = read_clip(path, None, 1.5, PLAIN)
  expected = [0, 40, 40, 40, 80, 160, 160, 160, 160, 160, 200]
  assert_levels(clip, expected[: len(clip.frames)])
  assert len(clip.frames) in (11, 12)  # the last frame's length is a guess
  assert clip.duration == len(clip.frames) / RATE


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts", "v.avi", "v.h264"])
@pytest.mark.parametrize("gop", [4, 250])
def test_start_and_end_are_exact_in_every_container(tmp_path, name, gop):
  images = [grey(6 * k) for k in range(32)]
  options = {"g": str(gop), "bf": "2", "qp": "4"}
  if name == "v.avi":
    path = write_video(tmp_path / name, images, codec="ffv1", base=RATE)
  else:
    path = write_video(tmp_path / name, images, options=options)
  if name == "v.h264":  # no time stamps: the stream's own rate, 25 a second
    whole = read_clip(path, None, None, Encoding(25.0, 512))
    assert_levels(whole, [6 * k for k in range(32)])
    part = read_clip(path, 0.4, 0.6, Encoding(25.0, 512))
    assert_levels(part, [6 * k for k in range(10, 15)])
  else:
    clip = read_clip(path, 2.0, 3.0, PLAIN)
    assert_levels(clip, [6 * k for k in range(16, 24)])
    assert_levels(
      read_clip(path, None, None, PLAIN), [6 * k for k in range(32)]
    )


def test_end_beyond_the_video_is_the_videos_end(tmp_path):
  path = write_video(tmp_path / "v.mp4", [grey(10 * k) for k in range(16)])
  assert_levels(read_clip(path, 1.5, 99.0, PLAIN), [120, 130, 140, 150])
  error = reason(path, 2.5, 99.0)
  assert error.what == "outside the video"
  assert "2.5 s" in error.why and "0.00 to 2.00 s" in error.why


def test_time_stamps_that_start_again_go_on(tmp_path):
  images = [grey(20 * k) for k in range(8)]
  piece = write_video(tmp_path / "v.ts", images).read_bytes()
  path = tmp_path / "twice.ts"
  path.write_bytes(piece * 2)
  clip = read_clip(path, None, None, PLAIN)
  assert abs(len(clip.frames) - 16) <= 1
  assert abs(levels(clip)[-1] - 140) <= 3


def test_max_frames_bounds_a_long_clip(tmp_path):
  path = write_video(tmp_path / "v.mp4", [grey(10 * k) for k in range(16)])
  clip = read_clip(path, None, None, Encoding(RATE, 512, max_frames=5))
  assert_levels(clip, [0, 10, 20, 30, 40])
  assert clip.cut
  assert not read_clip(path, None, None, Encoding(RATE, 512, max_frames=16)).cut


# ------------------------------------------------------------ pictures


def corners():
  """Red, green / blue, white: each of the eight turns looks different."""
  image = np.zeros((48, 64, 3), np.uint8)
  image[:24, :32, 0] = image[:24, 32:, 1] = image[24:, :32, 2] = 255
  image[24:, 32:] = 255
  return image


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_display_matrix_turns_the_picture(tmp_path, angle, mirrored):
  turn = (angle, mirrored)
  path = write_video(tmp_path / "v.mp4", [corners()] * 4, turn=turn)
  expected = np.rot90(corners(), angle // 90)  # counter-clockwise
  expected = expected[:, ::-1] if mirrored else expected
  clip = read_clip(path, None, None, PLAIN)
  got = pixels(clip.frames[0])
  assert got.shape == expected.shape
  assert (clip.height, clip.width) == expected.shape[:2]
  for y in (0.25, 0.75):
    for x in (0.25, 0.75):
      at = int(y * len(got)), int(x * got.shape[1])
      np.testing.assert_allclose(got[at], expected[at], atol=40)


def test_upright_of_no_turn_and_of_a_crooked_one():
  image = np.arange(24).reshape(2, 4, 3)
  np.testing.assert_array_equal(upright(image, (1, 0, 0, 1)), image)
  turned = upright(image, (5, 60000, -60000, -5))  # nearly 90 clockwise
  np.testing.assert_array_equal(turned, np.rot90(image, -1))


def test_pixels_that_are_not_square(tmp_path):
  images = [corners()] * 2
  path = write_video(tmp_path / "v.mp4", images, aspect=Fraction(3, 2))
  clip = read_clip(path, None, None, PLAIN)
  assert (clip.width, clip.height) == (96, 48)


def test_stored_size():
  assert stored_size(640, 360, 1.0, 128) == (228, 128)
  assert stored_size(360, 640, 1.0, 128) == (128, 228)
  assert stored_size(64, 48, 1.0, 128) == (64, 48)  # never enlarged
  assert stored_size(720, 576, 16 / 15, 288) == (384, 288)
  with pytest.raises(ClipError, match="elongated"):
    stored_size(4000, 2, 1.0, 128)


def test_short_side_and_quality_change_the_frames(tmp_path):
  noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
  path = write_video(tmp_path / "v.mp4", [noise] * 2, options={"qp": "10"})
  small = read_clip(path, None, None, Encoding(RATE, 32))
  assert pixels(small.frames[0]).shape == (32, 48, 3)
  sizes = [
    len(read_clip(path, None, None, Encoding(RATE, 64, 9, q)).frames[0])
    for q in (20, 90)
  ]
  assert sizes[1] > 2 * sizes[0]


def test_transparency_lies_over_black(tmp_path):
  image = np.zeros((48, 64, 4), np.uint8)
  image[..., 0] = 200
  image[:, :32, 3] = 255  # right: transparent red
  path = write_video(
    tmp_path / "v.mov", [image] * 2, codec="qtrle", pixels="argb"
  )
  got = pixels(read_clip(path, None, None, PLAIN).frames[0])
  np.testing.assert_allclose(got[24, 10], [200, 0, 0], atol=6)
  np.testing.assert_allclose(got[24, 50], [0, 0, 0], atol=6)


@pytest.mark.parametrize("pixel_format", ["gray", "yuv420p10le", "gray16le"])
def test_grey_and_deep_colour_become_rgb(tmp_path, pixel_format):
  path = write_video(
    tmp_path / "v.mkv", [grey(90)] * 2, codec="ffv1", pixels=pixel_format
  )
  got = pixels(read_clip(path, None, None, PLAIN).frames[0])
  np.testing.assert_allclose(got, np.full((48, 64, 3), 90), atol=3)


def test_a_size_that_changes_keeps_one_stored_size(tmp_path):
  first = write_video(tmp_path / "a.ts", [grey(50)] * 8).read_bytes()
  second = write_video(tmp_path / "b.ts", [grey(50, 96, 96)] * 8).read_bytes()
  path = tmp_path / "v.ts"
  path.write_bytes(first + second)
  clip = read_clip(path, None, None, PLAIN)
  assert len(clip.frames) > 10
  assert {pixels(jpeg).shape for jpeg in clip.frames} == {(48, 64, 3)}


def test_an_animation_is_a_video_and_a_picture_is_none(tmp_path):
  frames = [Image.fromarray(grey(60 * k)) for k in range(4)]
  frames[0].save(
    tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=250
  )
  clip = read_clip(tmp_path / "a.gif", None, None, PLAIN)
  assert_levels(clip, [0, 0, 60, 60, 120, 120, 180, 180])
  for name in ("p.png", "p.jpg", "p.gif"):
    frames[0].save(tmp_path / name)
    assert reason(tmp_path / name).what == "a picture"


# ------------------------------------------------------------ faults


def write_sound(container):
  stream = container.add_stream("aac", rate=44100)
  frame = av.AudioFrame.from_ndarray(
    np.zeros((1, 8192), np.float32), format="fltp", layout="mono"
  )
  frame.sample_rate = 44100
  return stream, frame


def test_sound_is_no_video(tmp_path):
  with wave.open(str(tmp_path / "s.wav"), "wb") as file:
    file.setparams((1, 2, 8000, 8000, "NONE", ""))
    file.writeframes(bytes(16000))
  error = reason(tmp_path / "s.wav")
  assert error.what == "no video stream"
  assert "only audio" in error.why


def test_a_cover_picture_is_no_video(tmp_path):
  with av.open(str(tmp_path / "s.mp4"), "w") as container:
    sound, samples = write_sound(container)
    cover = container.add_stream("mjpeg", rate=1)
    cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
    cover.disposition = Disposition.attached_pic
    container.mux(sound.encode(samples))
    container.mux(cover.encode(av.VideoFrame.from_ndarray(grey(9))))
    container.mux(cover.encode())
    container.mux(sound.encode())
  error = reason(tmp_path / "s.mp4")
  assert error.what == "no video stream"
  assert "cover picture" in error.why


@pytest.mark.parametrize(
  ("content", "what", "words"),
  [
    (b"", "empty file", "0 bytes"),
    (b"<!DOCTYPE html><html>Sign in</html>", "not a video", "web page"),
    (b"#EXTM3U\n/etc/passwd\n", "not a video", "playlist"),
    (b"ffconcat version 1.0\nfile v.mp4\n", "not a video", "no video file"),
    (b"a text of some words\n" * 99, "not a video", "no video file"),
    (bytes(9999), "not a video", "no video file"),
  ],
)
def test_what_is_no_video_is_named(tmp_path, content, what, words):
  write_video(tmp_path / "v.mp4", [grey(9)] * 4)
  path = tmp_path / "x.mp4"
  path.write_bytes(content)
  error = reason(path)
  assert error.what == what
  assert words in error.why


@pytest.mark.parametrize("muxer", [{}, {"movflags": "faststart"}])
def test_a_cut_off_file_is_named(tmp_path, muxer):
  noise = np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3), np.uint8)
  path = write_video(tmp_path / "v.mp4", noise, muxer=muxer)
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  assert reason(path).what == "cut off"
  assert "download it again" in reason(path).what_to_do
  if muxer:  # what is there can be used
    assert len(read_clip(path, None, 0.5, PLAIN).frames) == 4


def test_a_file_that_stops_decoding_says_where(tmp_path):
  noise = np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3), np.uint8)
  path = write_video(tmp_path / "v.mp4", noise, options={"bf": "0"})
  with av.open(str(path)) as container:
    entries = list(container.streams.video[0].index_entries)
  data = bytearray(path.read_bytes())
  data[entries[16].pos : entries[16].pos + 4] = struct.pack(">I", 0x7FFFFFF)
  path.write_bytes(data)
  error = reason(path)
  assert error.what == "damaged"
  assert "stops decoding after" in error.why
  assert len(read_clip(path, None, 1.0, PLAIN).frames) == 8


def test_huge_frames_are_refused(tmp_path):
  huge = np.zeros((6100, 6100, 3), np.uint8)
  path = write_video(tmp_path / "huge.mov", [huge], codec="png", pixels="rgb24")
  error = reason(path)
  assert error.what == "too large"
  assert "6100x6100" in error.why


def test_a_lie_about_the_size_is_refused(tmp_path):
  path = write_video(
    tmp_path / "v.mkv", [grey(9)] * 2, codec="mjpeg", pixels="yuvj420p"
  )
  start_of_frame = b"\xff\xc0\x00\x11\x08"
  old = start_of_frame + struct.pack(">2H", 48, 64)
  new = start_of_frame + struct.pack(">2H", 65000, 65000)
  assert old in path.read_bytes()
  path.write_bytes(path.read_bytes().replace(old, new))
  assert reason(path).what == "does not decode"
  assert "36,000,000 pixels" in reason(path).why


# ------------------------------------------------------------ parts of files


def part_of(path, content, before=1000, after=1000, size=None):
  """Media of `content` in the middle of a larger file."""
  noise = np.random.default_rng(0).bytes(before + after)
  path.write_bytes(noise[:before] + content + noise[before:])
  return Media(str(path), before, len(content) if size is None else size)


@pytest.mark.parametrize("name", GOOD)
def test_a_part_of_a_file_is_read_as_a_file_of_its_own(tmp_path, name):
  container, codec, suffix, options = GOOD[name]
  path = tmp_path / f"whole{suffix}"
  film(path, container, codec, options, sound=name in SOUND)
  part = part_of(tmp_path / "archive", path.read_bytes())
  for start, end in ((None, None), (0.7, 1.5), (1.2, None)):
    args = (start, end, Encoding(12.0, 64))
    assert decode.read_clip(part, *args) == read_clip(path, *args)
  # It ends where its size says: half of it is cut off, or has fewer frames.
  half = dataclasses.replace(part, size=part.size // 2)
  path.write_bytes(path.read_bytes()[: half.size])
  assert outcome(half) == outcome(Media(str(path)))
  assert outcome(half) != outcome(part)


def outcome(media):
  """The clip, or why there is none."""
  try:
    return decode.read_clip(media, None, None, Encoding(12.0, 64))
  except ClipError as error:
    return error.args[:2]


@pytest.mark.parametrize(
  "content",
  [
    b"<!DOCTYPE html><html>Sign in</html>",
    b"#EXTM3U\n#EXTINF:9,\nfile:///FILM\n",
    b"ffconcat version 1.0\nfile FILM\n",
    b"v=0\nm=video 5004 RTP/AVP 96\n",
    bytes(9999),
    b"\0\0\0\x08ftyp",
  ],
)
def test_a_part_is_refused_where_a_file_is(tmp_path, content):
  film_path = write_video(tmp_path / "v.mp4", [grey(9)] * 4)
  content = content.replace(b"FILM", str(film_path).encode())
  whole_file = tmp_path / "whole.mp4"
  whole_file.write_bytes(content)
  part = part_of(tmp_path / "archive", content, before=64, after=0)
  assert outcome(part) == outcome(Media(str(whole_file)))
  assert outcome(part)[0] in ("not a video", "cut off")


def test_a_part_lies_within_its_file(tmp_path):
  video = write_video(tmp_path / "v.mp4", [grey(9)] * 4).read_bytes()
  beyond = part_of(tmp_path / "a", video, after=0, size=len(video) + 1)
  assert outcome(beyond)[0] == "cut off"
  assert outcome(part_of(tmp_path / "b", video, size=0))[0] == "empty file"
  gone = Media(str(tmp_path / "gone"), 0, 9)
  assert outcome(gone)[0] == "no such file"
  for offset, size in ((0, None), (None, 5), (-1, 5), (0, -1), (0.0, 5)):
    with pytest.raises(ValueError, match="offset and size"):
      Media("/a", offset, size)


# ------------------------------------------------------------ workers


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  path = tmp_path_factory.mktemp("good") / "good.mp4"
  return str(write_video(path, [grey(10 * k) for k in range(16)]))


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
  """A file that takes far longer to read than a test may last."""
  folder = tmp_path_factory.mktemp("endless")
  noise = np.random.default_rng(0).integers(0, 255, (270, 480, 3), np.uint8)
  images = [np.roll(noise, k, 1).repeat(4, 0).repeat(4, 1) for k in range(4)]
  options = {"preset": "ultrafast", "qp": "40"}
  piece = write_video(folder / "a.ts", images, options=options).read_bytes()
  path = folder / "endless.ts"
  path.write_bytes(piece * 400)
  return str(path)


def whole(path):
  return Request(Media(str(path)), None, None)


ENDLESS = Encoding(RATE, 512, max_frames=1_000_000)


def test_workers_give_what_read_clip_gives_in_order(good):
  size = os.path.getsize(good)
  parts = (Media(good), Media(good, 0, size))
  requests = [Request(parts[k % 2], k / 8, k / 8 + 0.5) for k in range(12)]
  with DecodeWorkers(2, PLAIN, time_limit=60, memory_limit_mb=4096) as workers:
    results = list(workers.read(requests))
  expected = [
    decode.read_clip(r.media, r.start, r.end, PLAIN) for r in requests
  ]
  assert results == expected


def test_a_hang_costs_one_clip(good, endless):
  requests = [whole(path) for path in (good, endless, good)]
  start = time.monotonic()
  with DecodeWorkers(1, ENDLESS, time_limit=2, memory_limit_mb=4096) as workers:
    before, hung, after = workers.read(requests)
  assert time.monotonic() - start < 30
  assert isinstance(hung, ClipError)
  assert hung.what == "too slow"
  assert len(before.frames) == len(after.frames) == 16


def test_a_killed_worker_costs_one_clip(good, endless):
  requests = [whole(path) for path in (good, endless, good)]
  with DecodeWorkers(
    1, ENDLESS, time_limit=60, memory_limit_mb=4096
  ) as workers:
    results = workers.read(requests)
    before = next(results)
    process = workers._workers[0]._process
    killer = threading.Timer(0.5, process.kill)
    killer.start()
    killed, after = results
  assert isinstance(killed, ClipError)
  assert killed.what == "too much memory"
  assert len(before.frames) == len(after.frames) == 16
  assert process.poll() is not None


def test_the_memory_of_a_worker_is_bounded(tmp_path, good):
  path = tmp_path / "big.mkv"
  big = np.zeros((4900, 7200, 3), np.uint8)
  write_video(path, [big] * 2, codec="mjpeg", pixels="yuvj444p")
  requests = [whole(p) for p in (good, path, good)]
  with DecodeWorkers(1, PLAIN, time_limit=60, memory_limit_mb=400) as workers:
    before, large, after = workers.read(requests)
  assert isinstance(large, ClipError)
  assert large.what in ("too much memory", "crashed the decoder")
  assert len(before.frames) == len(after.frames) == 16


# ------------------------------------------------------------ wild files


def test_wild_rotated_files_come_out_upright(shared_data):
  """Portraits stand, and the sky is above the roofs."""
  folder = shared_data / "hard"
  for name, portrait in (
    ("decord/tests/test_data/video_180.mov", False),
    ("decord/tests/test_data/video_270.mov", True),
    ("androidx/mp4/dolbyVision-hdr.MOV", True),
    ("androidx/mp4/sample_with_color_info.mp4", True),
  ):
    clip = read_clip(folder / name, None, None, Encoding())
    assert (clip.height > clip.width) == portrait, name
  sky = pixels(
    read_clip(
      folder / "androidx/mp4/dolbyVision-hdr.MOV", None, None, Encoding()
    ).frames[0]
  ).mean(axis=(1, 2))
  assert sky[:60].mean() > sky[-60:].mean() + 30  # clouds above, roofs below
