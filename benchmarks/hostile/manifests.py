"""Broken and malicious manifests of the videos 0.mp4, 1.mp4, ..."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

COLUMNS = ("video", "text", "start", "end", "id", "label", "split", "group")
CELLS = (
  *("../outside.mp4", "/etc/passwd", "/dev/zero", "videos/../../x.mp4", "~/x"),
  *("http://127.0.0.1/x.mp4", "file:///etc/passwd", "concat:0.mp4|1.mp4"),
  *("pipe:0", "-", ".", "", " ", "\0", "a\0b", "0.mp4\n", "\u200b", "\ufeff"),
  *("=cmd|' /C calc'!A0", "@SUM(1)", "<script>alert(1)</script>", "%s%n{x}"),
  *("1e400", "-1", "nan", "1e308", "99999999999999999999", "0x10", "1_0"),
  *("x" * 5000, "x" * 200_000, "\ud800", "🎡" * 300, "a/" * 3000, "../" * 50),
  *("all", "train[:50%]", "0", "CON", "t" * 300, "../../split", "None", "[]"),
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "cp037")


def make(folder: Path, count: int, rng: np.random.Generator) -> Iterator[Path]:
  """Writes manifests to FOLDER/broken and yields each in turn."""
  (folder / "broken").mkdir()
  for i in range(count):
    suffix = (".csv", ".tsv", ".jsonl")[i % 3]
    path = folder / "broken" / f"{i:04d}{suffix}"
    special(path, i // 3) if i % 10 == 9 else path.write_bytes(
      broken(suffix, i // 3 % len(WAYS), rng)
    )
    yield path


def special(path: Path, turn: int) -> None:
  """What is no file with rows at all."""
  how = turn % 8
  if how == 0:
    os.mkfifo(path)
  elif how == 1:
    path.symlink_to("/dev/zero")
  elif how == 2:
    path.mkdir()
  elif how == 3:
    path.symlink_to(path.name)
  elif how == 4:
    path.write_bytes(b"")
    os.truncate(path, 16 * 2**30)
  elif how == 5:
    path.write_bytes(b"video,text\n" + b"0.mp4,x," * 10_000)
  elif how == 6:
    path.write_bytes(bytes(range(256)) * 50)
  # 7: it is not there


def rows(rng) -> list[dict[str, object]]:
  """Good ones: five videos with a text each."""
  return [
    {"video": f"{i}.mp4", "text": f"film number {i}", "start": "", "end": ""}
    | {"id": "", "label": "film", "split": "train", "group": f"g{i % 2}"}
    for i in range(5)
  ]


def as_bytes(suffix: str, table: list[dict], columns=COLUMNS) -> bytes:
  """A manifest of the rows."""
  if suffix == ".jsonl":
    lines = [json.dumps(row) for row in table]
    return "\n".join([*lines, ""]).encode()
  file = io.StringIO(newline="")
  writer = csv.DictWriter(
    file,
    columns,
    delimiter="," if suffix == ".csv" else "\t",
    extrasaction="ignore",
  )
  writer.writeheader()
  writer.writerows(table)
  return file.getvalue().encode("utf-8", "surrogatepass")


def broken(suffix: str, way: int, rng: np.random.Generator) -> bytes:
  """A manifest that one of WAYS has been at."""
  return WAYS[way](suffix, rng)


def truncated(suffix, rng):
  data = as_bytes(suffix, rows(rng))
  return data[: rng.integers(len(data))]


def flipped(suffix, rng):
  data = bytearray(as_bytes(suffix, rows(rng)))
  for place in rng.integers(len(data), size=rng.integers(1, 20)):
    data[place] ^= 1 << rng.integers(8)
  return bytes(data)


def cell(suffix, rng):
  """One or several cells with something that does not belong there."""
  table = rows(rng)
  for _ in range(rng.integers(1, 4)):
    row, column = table[rng.integers(5)], COLUMNS[rng.integers(len(COLUMNS))]
    row[column] = CELLS[rng.integers(len(CELLS))]
  return as_bytes(suffix, table)


def json_cell(suffix, rng):
  """Values that are no text; in a table, their words."""
  values = [None, True, 1.5, 10**40, [], {"a": []}, float("nan"), -(10**20)]
  table = rows(rng)
  for row in table:
    row[COLUMNS[rng.integers(len(COLUMNS))]] = values[rng.integers(8)]
  return as_bytes(suffix, table)


def encoded(suffix, rng):
  text = as_bytes(suffix, rows(rng)).decode().replace("film", "félm")
  return text.encode(ENCODINGS[rng.integers(len(ENCODINGS))])


def columns(suffix, rng):
  """In another order, doubled, missing, unnamed."""
  names = [str(name) for name in rng.permutation(COLUMNS)]
  change = rng.integers(4)
  if change == 1:
    names = names[:5]
  elif change == 2:
    names += names[:2]
  elif change == 3:
    names[rng.integers(8)] = ""
  return as_bytes(suffix, rows(rng), names)


def wide(suffix, rng):
  """Thousands of columns."""
  more = {f"c{i}": str(i) for i in range(rng.integers(1000, 6000))}
  table = [row | more for row in rows(rng)]
  return as_bytes(suffix, table, [*COLUMNS, *more])


def nested(suffix, rng):
  return as_bytes(suffix, rows(rng)) + b"[" * int(rng.integers(1, 100_000))


def line_ends(suffix, rng):
  lines = as_bytes(suffix, rows(rng)).splitlines()
  ends = (b"\n", b"\r", b"\r\n", b"\n\n", b"\x0b", b"\x85")
  return b"".join(line + ends[rng.integers(6)] for line in lines)


def quotes(suffix, rng):
  """A quote that is not closed, or that begins in the middle."""
  data = bytearray(as_bytes(suffix, rows(rng)))
  for place in rng.integers(len(data), size=rng.integers(1, 4)):
    data[place : place + 1] = b'"'
  return bytes(data)


def doubled(suffix, rng):
  """The same ids, clips and conflicting rows."""
  table = [*rows(rng), *rows(rng)]
  for row in table:
    column = COLUMNS[rng.integers(2, len(COLUMNS))]
    row[column] = ("", "1", "a")[rng.integers(3)]
  return as_bytes(suffix, table)


def noise(suffix, rng):
  head = as_bytes(suffix, rows(rng))[: rng.integers(100)]
  return head + rng.bytes(rng.integers(1, 5000))


WAYS = (
  truncated, flipped, cell, cell, cell, json_cell, encoded, columns, wide,
  nested, line_ends, quotes, doubled, noise,
)  # fmt: skip
