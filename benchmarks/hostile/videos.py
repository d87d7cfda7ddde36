"""Broken and malicious video files, made from a few good ones.

`make(folder, count, seed)` writes them and returns which is of which kind. The
same seed gives the same files, up to what the encoders write.
"""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.hostile.films import (
  GOOD,
  crowd,
  good_files,
  large_film,
  large_picture,
  picture,
)

SPARSE = 16 * 2**30  # bytes of a file without content


def make(folder: Path, count: int, seed: int) -> list[tuple[str, str]]:
  """Writes `count` files, the kinds in turn; returns (name, kind) of each.

  Args:
    folder: is there, and empty; names are relative to it.
    count: of files. What lies outside `folder`, beside it, is `outside.mp4`.
    seed: of the mutations.
  """
  good = good_files(folder.parent)
  (folder.parent / "outside.mp4").write_bytes(good["mp4"])
  rng = np.random.default_rng(seed)
  kinds = list(KINDS)
  made = []
  for i in range(count):
    kind = kinds[i % len(kinds)]
    name = f"{i:05d}-{kind.split(' ')[0].strip(',')}"
    made.append((KINDS[kind](rng, good, folder, name, i // len(kinds)), kind))
  return made


# ------------------------------------------------------------------ kinds


def choose(rng, good: dict[str, bytes]) -> tuple[bytearray, str]:
  """The bytes of a good file and the end of its name."""
  name = list(good)[rng.integers(len(good))]
  return bytearray(good[name]), GOOD[name.split(" ")[0]][2]


def write(folder: Path, name: str, data: bytes) -> str:
  """Returns `name`."""
  (folder / name).write_bytes(data)
  return name


def unchanged(rng, good, folder, name, turn):
  data, suffix = choose(rng, good)
  return write(folder, name + suffix, data)


def truncated(rng, good, folder, name, turn):
  data, suffix = choose(rng, good)
  return write(folder, name + suffix, data[: rng.integers(1, len(data))])


def flipped(rng, good, folder, name, turn):
  data, suffix = choose(rng, good)
  end = len(data) if turn % 2 else min(1024, len(data))
  for place in rng.integers(end, size=rng.integers(1, 201)):
    data[place] ^= 1 << rng.integers(8)
  return write(folder, name + suffix, data)


def overwritten(rng, good, folder, name, turn):
  """A run of bytes becomes zero, random, or is taken out or doubled."""
  data, suffix = choose(rng, good)
  begin = int(rng.integers(len(data)))
  end = min(len(data), begin + int(rng.integers(1, 5000)))
  data[begin:end] = (
    bytes(end - begin),
    rng.bytes(end - begin),
    b"",
    data[begin:end] * 2,
  )[turn % 4]
  return write(folder, name + suffix, data)


def spliced(rng, good, folder, name, turn):
  first, suffix = choose(rng, good)
  second, _ = choose(rng, good)
  cut = rng.integers(1, len(first))
  return write(
    folder, name + suffix, first[:cut] + second[rng.integers(len(second)) :]
  )


BOXES = (
  b"moov", b"trak", b"mdia", b"stbl", b"stsd", b"stts", b"stsc", b"stsz",
  b"stco", b"ctts", b"stss", b"avcC", b"elst", b"mdat", b"moof", b"trun",
)  # fmt: skip


def box_sizes(rng, good, folder, name, turn):
  """A box of an mp4 with another size, or another number of entries."""
  data = bytearray(good[("mp4", "faststart", "fragments")[turn % 3]])
  boxes = [box for box in BOXES if box in data]
  place = data.index(boxes[rng.integers(len(boxes))])
  place += int(rng.choice([-4, 8, 12]))
  values = (0, 1, 7, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
  data[place : place + 4] = struct.pack(">I", values[rng.integers(7)])
  return write(folder, name + ".mp4", data)


def next_to_nothing(rng, good, folder, name, turn):
  contents = (b"", b"\0", b"\0\0\0\x08ftyp", b" " * 100, bytes(10_000))
  return write(folder, name + ".mp4", contents[turn % len(contents)])


def noise(rng, good, folder, name, turn):
  """Random bytes, behind a good beginning or not."""
  data, suffix = choose(rng, good)
  head = data[: (0, 4, 16, 64)[turn % 4]]
  return write(folder, name + suffix, head + rng.bytes(rng.integers(1, 50_000)))


def other_extension(rng, good, folder, name, turn):
  data, _ = choose(rng, good)
  suffixes = (".mp4", ".avi", ".txt", ".jpg", ".m3u8", ".sdp", ".gif", "")
  return write(folder, name + suffixes[turn % len(suffixes)], data)


def gif(rng, good, folder, name, turn):
  pictures = [
    Image.fromarray(picture(t).to_ndarray()) for t in range((1, 12)[turn % 2])
  ]
  file = io.BytesIO()
  pictures[0].save(
    file, "GIF", save_all=True, append_images=pictures[1:], duration=80
  )
  return write(folder, name + (".gif", ".mp4")[turn // 2 % 2], file.getvalue())


def still(rng, good, folder, name, turn):
  """A picture under a video's name, whole or cut off."""
  kind = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")[turn % 6]
  file = io.BytesIO()
  Image.fromarray(picture(turn).to_ndarray()).save(file, kind)
  data = file.getvalue()
  cut = len(data) if turn % 12 < 6 else int(rng.integers(1, len(data)))
  return write(folder, name + ".mp4", data[:cut])


TEXTS = (
  b"<!DOCTYPE html><html><body>Sign in to see this video</body></html>",
  b"this is not a video\n" * 100,
  b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n",
  b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:1/x.ts\n#EXT-X-ENDLIST\n",
  b"ffconcat version 1.0\nfile '/etc/passwd'\nfile '../outside.mp4'\n",
  b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96"
  b"\na=rtpmap:96 H264/90000\n",
  b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
  b'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">&e;</MPD>',
  b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
  b"1\n00:00:00,000 --> 00:00:09,000\na subtitle\n\n",
  b"[Script Info]\nScriptType: v4.00+\n[Events]\n",
  b";FFMETADATA1\ntitle=x\n",
  b"\xff\xfeh\0t\0m\0l\0",
  b"%PDF-1.4\n%%EOF\n",
  b"PK\x03\x04" + bytes(200),
  b"\x7fELF" + bytes(200),
  b"import os\nos.abort()\n",
)


def text(rng, good, folder, name, turn):
  """Pages, playlists, subtitles and programs under a video's name."""
  return write(folder, name + ".mp4", TEXTS[turn % len(TEXTS)])


def huge_picture(rng, good, folder, name, turn):
  """A header that speaks of far more pixels than there are bytes."""
  side = int(rng.choice([5000, 16_000, 65_535, 2**20, 2**31 - 1]))
  how = turn % 6
  if how == 0:
    data = f"YUV4MPEG2 W{side} H{side} F25:1 C420\nFRAME\n".encode()
  elif how == 1:
    data = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", side, side)
    data += b"\x08\x02\0\0\0\0\0\0\0" + bytes(100)
  elif how == 2:
    short = min(side, 65_535)
    data = b"GIF89a" + struct.pack("<HH", short, short) + b"\xf0\0\0" + bytes(6)
    data += b"\x2c" + struct.pack("<HHHH", 0, 0, short, short) + b"\0\x02\0\x3b"
  elif how == 3:
    short = min(side, 65_535)
    data = b"DKIF\0\0 \0VP80" + struct.pack("<HH", short, short) + bytes(60)
  else:  # the track or the sample entry of an mp4
    short = min(side, 65_535)
    data = bytearray(good["mp4"])
    place = data.index(b"avc1") + 28
    data[place : place + 4] = struct.pack(">HH", short, short)
    if how == 5:  # and of the codec's own header nothing
      place = data.index(b"avcC")
      data[place + 4 : place + 40] = bytes(36)
  return write(folder, name + ".mp4", data)


def large_frames(rng, good, folder, name, turn):
  """Just below and above what is allowed, and truly of that size."""
  side = (5984, 6016)[turn // 3 % 2]
  if turn % 3 == 0:
    data = large_film(side)
  else:
    data = large_picture(("PNG", "GIF")[turn % 3 - 1], side, turn % 3)
  return write(folder, name + ".mp4", data)


def odd_clock(rng, good, folder, name, turn):
  """Time scales, durations and frame times that cannot be."""
  data = bytearray(good["mp4"])
  value = int(rng.choice([0, 1, 2, 2**24, 2**31 - 1, 2**31, 2**32 - 1]))
  box, offset = (
    (b"mvhd", 16),  # time scale of the film
    (b"mdhd", 16),  # and of the track
    (b"mvhd", 20),  # duration
    (b"mdhd", 20),
    (b"stts", 12),  # number of frames of the first length
    (b"stts", 16),  # that length
    (b"ctts", 16),  # shift of the first frames
    (b"elst", 12),  # duration of the edit
    (b"elst", 16),  # where it begins
    (b"elst", 20),  # its speed
  )[turn % 10]
  place = data.index(box) + offset
  data[place : place + 4] = struct.pack(">I", value)
  return write(folder, name + ".mp4", data)


def many_streams(rng, good, folder, name, turn):
  count = (20, 100)[turn % 2]
  container, suffix = (("matroska", ".mkv"), ("mp4", ".mp4"))[turn // 2 % 2]
  data = bytearray(crowd(container, count))
  if turn >= 4:
    data[rng.integers(len(data))] ^= 255
  return write(folder, name + suffix, data)


def endless(rng, good, folder, name, turn):
  """More than can be read, and what is no file at all."""
  path = folder / (name + ".mp4")
  how = turn % 13
  if how == 0:
    os.mkfifo(path)
  elif how in (1, 2, 3):
    path.symlink_to(("/dev/zero", "/dev/full", "/dev/random")[how - 1])
  elif how in (4, 5):
    path.write_bytes((b"", good["mp4"])[how - 4])
    os.truncate(path, SPARSE)
  elif how == 6:
    path.mkdir()
  elif how == 7:
    path.symlink_to("nowhere.mp4")
  elif how == 8:
    path.symlink_to(path.name)
  elif how == 9:
    path.symlink_to("../outside.mp4")
  elif how == 10:  # a film of half an hour and two million audio packets
    path.write_bytes(good["ts"] * 300)
  elif how == 11:
    path.write_bytes(good["mp4"])
    path.chmod(0)  # which does not keep the super-user out
  else:  # one frame, ten thousand times
    file = io.BytesIO()
    Image.fromarray(picture(turn).to_ndarray()).save(file, "JPEG")
    path.write_bytes(file.getvalue() * 10_000)
  return path.name


NAMES = (
  "new\nline", 'quo"te', "com,ma", "-dash", "=1+1", "@at", "tab\there", "%05d",
  "колесо 🎡", "e\u0301", "a" * 200, "back\\slash", "$(reboot)", "`id`", "; ls",
  "file:x", "<script>", "../videos/up", "./here", "x%00y", "\u202egpj",
)  # fmt: skip


def odd_name(rng, good, folder, name, turn):
  odd = NAMES[turn % len(NAMES)] + f"-{turn}.mp4"
  return write(folder, odd, good["mp4"])


KINDS: dict[str, Callable[..., str]] = {
  "unchanged": unchanged,
  "truncated": truncated,
  "bits flipped": flipped,
  "bytes overwritten, left out, doubled": overwritten,
  "spliced of two": spliced,
  "box sizes": box_sizes,
  "next to nothing": next_to_nothing,
  "noise": noise,
  "another extension": other_extension,
  "GIF": gif,
  "a picture": still,
  "text, page, playlist": text,
  "huge dimensions": huge_picture,
  "large frames": large_frames,
  "odd clock": odd_clock,
  "many streams": many_streams,
  "endless, or no file": endless,
  "odd name": odd_name,
}
