"""What the corpora of this folder share: clips made unit by unit, a manifest.

A unit (a task of a simulator, a range of seeds) is made by one process from its
name alone: its clips, then OUT/units/NAME.json with their rows. A unit is done
when that file is there, so the same command resumes; at the end the rows of all
units become OUT/manifest.csv, in the order of the units.
"""

import contextlib
import csv
import functools
import io
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from calince_jax.data.synthetic.video import write_video
from calince_jax.errors import UserError
from calince_jax.files import write_atomic

COLUMNS = ("video", "text", "id", "label", "split", "group", "matched")
FRAME_RATE = 4
NUM_FRAMES = 8  # two seconds

Row = dict[str, Any]


def make_corpus(
  out: str,
  settings: dict[str, Any],
  units: Sequence[str],
  make: Callable[[str, Path], list[Row]],
  num_workers: int,
) -> Path:
  """Makes the units that are missing, and the manifest.

  Args:
    out: folder: new, or one that the same settings began.
    settings: what decides the clips.
    units: names, also of files.
    make: (unit, OUT) -> its rows, written into OUT/clips; can be pickled.
    num_workers: processes; 1: this one.

  Returns:
    The path of the manifest.

  Raises:
    UserError: the folder holds something else.
  """
  folder = Path(out)
  known, wanted = folder / "corpus.json", json.dumps(settings, indent=2) + "\n"
  begun = folder.is_dir() and any(folder.iterdir())
  if begun and not (known.exists() and known.read_text("utf-8") == wanted):
    raise UserError(
      f"{out} holds something else, or a corpus of other settings; choose"
      " another --out, or delete that folder"
    )
  for name in ("clips", "units"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  write_atomic(known, wanted)
  missing = [unit for unit in units if not _note(folder, unit).exists()]
  start = time.monotonic()
  make_one = functools.partial(_make, folder, make)
  context = multiprocessing.get_context("spawn")
  with contextlib.ExitStack() as stack:
    finished = map(make_one, missing)
    if num_workers > 1:
      pool = futures.ProcessPoolExecutor(num_workers, mp_context=context)
      finished = stack.enter_context(pool).map(make_one, missing)
    for count, unit in enumerate(finished, 1):
      seconds = time.monotonic() - start
      print(f"{unit}: {count}/{len(missing)} in {seconds:.0f} s", flush=True)
  table = io.StringIO()
  writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
  writer.writeheader()
  rows = [row for unit in units for row in _read(folder, unit)]
  writer.writerows(rows)
  write_atomic(folder / "manifest.csv", table.getvalue())
  print(f"{len(rows)} clips in {folder / 'manifest.csv'}")
  return folder / "manifest.csv"


def write_clip(out: Path, name: str, frames: Sequence[np.ndarray]) -> str:
  """Writes NUM_FRAMES frames uint8 [H, W, 3]; returns `video` of its row."""
  video = f"clips/{name}.mp4"
  write_video(out / video, np.stack(frames), frame_rate=FRAME_RATE)
  return video


def moments(count: int) -> np.ndarray:
  """int64 [NUM_FRAMES]: which of `count` moments a clip shows."""
  return np.linspace(0, count - 1, NUM_FRAMES).round().astype(int)


def _note(folder, unit):
  return folder / "units" / f"{unit}.json"


def _make(folder, make, unit):
  rows = make(unit, folder)
  write_atomic(_note(folder, unit), json.dumps(rows))
  return unit


def _read(folder, unit):
  return json.loads(_note(folder, unit).read_text(encoding="utf-8"))
