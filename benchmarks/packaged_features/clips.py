"""Frames of the clips of a manifest, for the feature extractors here."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np


def rows(manifest: Path) -> list[dict[str, str]]:
  """The manifest's rows, in its order."""
  with open(manifest, newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def clip_frames(
  manifest: Path, num_frames: int, size: int
) -> Iterator[np.ndarray]:
  """Yields uint8 [num_frames, size, size, 3] of each row's video.

  Frames are the middles of equal parts of the clip; pictures are squeezed to
  a square, so that nothing at the sides is lost.
  """
  for row in rows(manifest):
    with av.open(str(manifest.parent / row["video"])) as container:
      pictures = [
        frame.to_ndarray(format="rgb24", width=size, height=size)
        for frame in container.decode(video=0)
      ]
    middles = (np.arange(num_frames) + 0.5) / num_frames * len(pictures)
    yield np.stack([pictures[int(i)] for i in middles])


def save(out: Path, features: np.ndarray, keys: list[str]) -> None:
  """Writes OUT.npy and OUT.keys.jsonl, as calince_jax.clean reads them."""
  np.save(out, features)
  with open(out.with_suffix(".keys.jsonl"), "w", encoding="utf-8") as file:
    file.writelines(json.dumps(key, ensure_ascii=False) + "\n" for key in keys)


def clip_ids(manifest: Path) -> list[str]:
  """The id of each row's clip: the video's name where there is none."""
  return [row.get("id") or row["video"] for row in rows(manifest)]
