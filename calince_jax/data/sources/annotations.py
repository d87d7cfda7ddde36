"""Published annotation files, as their authors distribute them.

A reader is a function from files to rows {video, text, start, end, label,
split}; videos are named as in the file, mostly without extension, and found
below the root (find.py). Captions of a whole clip are several rows; a timed
caption is a clip of its own.
"""

import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from calince_jax.data.problems import Problem
from calince_jax.data.sources.digest import digest_of
from calince_jax.data.sources.find import Finder
from calince_jax.data.sources.item import Clip
from calince_jax.data.sources.manifest import clips_of_rows
from calince_jax.errors import UserError
from calince_jax.files import check_plain_file

Row = dict[str, Any]
Paths = Sequence[pathlib.Path]
DIDEMO_SECONDS = 5  # a moment is named by segments of this length


def read_msrvtt(paths: Paths) -> Iterator[Row]:
  """MSR-VTT: the JSON file of videos and sentences, and lists of 1k-A.

  Alone, the JSON file (or those of train_val and test) has the splits. With
  MSRVTT_train.9k.csv (or 7k) and MSRVTT_JSFUSION_test.csv, the listed videos
  with all their sentences are split train, and the pairs of the second file
  split test. The second file can be read alone, too.
  """
  tables = [p for p in paths if p.suffix.lower() == ".csv"]
  documents = [_json(p) for p in paths if p not in tables]
  train: set[str] = set()
  for path in tables:
    for row in _csv(path, ["video_id"]):
      if row.get("sentence"):
        yield {
          "video": row["video_id"], "text": row["sentence"], "split": "test",
        }  # fmt: skip
      else:
        train.add(row["video_id"])
  for document in documents:
    splits = {v["video_id"]: v["split"] for v in document["videos"]}
    names = {"validate": "val"}
    for sentence in document["sentences"]:
      video = sentence["video_id"]
      if not tables or video in train:
        split = "train" if tables else splits[video]
        yield {
          "video": video,
          "text": sentence["caption"],
          "split": names.get(split, split),
        }


def read_msvd(paths: Paths) -> Iterator[Row]:
  """MSVD: lines `ID_START_END caption` (AllVideoDescriptions.txt)."""
  for path in paths:
    for line in _lines(path):
      if not line.startswith("#"):
        video, text = line.split(maxsplit=1)
        yield {"video": video, "text": text}


def read_didemo(paths: Paths) -> Iterator[Row]:
  """DiDeMo: JSON lists; the first annotator's moment of each description."""
  for path in paths:
    for entry in _json(path):
      first, last = entry["times"][0]
      yield {
        "video": entry["video"],
        "text": entry["description"],
        "start": first * DIDEMO_SECONDS,
        "end": (last + 1) * DIDEMO_SECONDS,
        "split": _split_of(path),
      }


def read_activitynet(paths: Paths) -> Iterator[Row]:
  """ActivityNet Captions: {video: {timestamps, sentences}}."""
  for path in paths:
    for video, entry in _json(path).items():
      timed = zip(entry["timestamps"], entry["sentences"], strict=True)
      for (start, end), text in timed:
        yield {
          "video": video,
          "text": text,
          "start": start,
          "end": end,
          "split": _split_of(path),
        }


def read_youcook2(paths: Paths) -> Iterator[Row]:
  """YouCook2: {"database": {video: {subset, annotations}}}."""
  names = {"training": "train", "validation": "val", "testing": "test"}
  for path in paths:
    for video, entry in _json(path)["database"].items():
      # Those of the test set were never published.
      for annotation in entry.get("annotations", []):
        start, end = annotation["segment"]
        yield {
          "video": video,
          "text": annotation["sentence"],
          "start": start,
          "end": end,
          "label": str(entry["recipe_type"]),
          "split": names.get(entry["subset"], entry["subset"]),
        }


def read_vatex(paths: Paths) -> Iterator[Row]:
  """VATEX: a list of {videoID, enCap}; the English captions."""
  for path in paths:
    for entry in _json(path):
      for text in entry["enCap"]:
        yield {
          "video": entry["videoID"], "text": text, "split": _split_of(path),
        }  # fmt: skip


def read_ucf101(paths: Paths) -> Iterator[Row]:
  """UCF101: trainlist01.txt and testlist01.txt; the group is the recording."""
  for path in paths:
    for line in _lines(path):
      video = line.split()[0]
      label, _ = video.split("/")
      yield {
        "video": video,
        "text": re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).lower(),
        "label": label,
        "group": video.rpartition("_c")[0],
        "split": "test" if "test" in path.name else "train",
      }


def read_hmdb51(paths: Paths) -> Iterator[Row]:
  """HMDB51: CLASS_test_splitN.txt with `file 0|1|2`: unused, train, test."""
  splits = {"1": "train", "2": "test"}
  for path in paths:
    label = path.name.partition("_test_split")[0]
    for line in _lines(path):
      video, which = line.split()
      if which in splits:
        yield {
          "video": video,
          "text": label.replace("_", " "),
          "label": label,
          "split": splits[which],
        }


def read_kinetics(paths: Paths) -> Iterator[Row]:
  """Kinetics: label,youtube_id,time_start,time_end,split; cut clips."""
  names = {"validate": "val", "holdout": "test"}
  for path in paths:
    for row in _csv(path, ["label", "youtube_id", "time_start", "time_end"]):
      start, end = (int(float(row[f"time_{x}"])) for x in ("start", "end"))
      split = row.get("split") or _split_of(path)
      yield {
        "video": f"{row['youtube_id']}_{start:06d}_{end:06d}",
        "text": row["label"],
        "label": row["label"],
        "split": names.get(split, split),
      }


def read_webvid(paths: Paths) -> Iterator[Row]:
  """WebVid: videoid,contentUrl,duration,page_dir,name."""
  for path in paths:
    for row in _csv(path, ["videoid", "name"]):
      yield {
        "video": row["videoid"], "text": row["name"], "split": _split_of(path),
      }  # fmt: skip


def _paragraphs(read: Callable[[Paths], Iterator[Row]]):
  """A reader of whole videos, their captions joined by their start."""

  def joined(paths: Paths) -> Iterator[Row]:
    moments: dict[tuple[str, str], list[Row]] = {}
    for row in read(paths):
      moments.setdefault((row["video"], row["split"]), []).append(row)
    for (video, split), rows in moments.items():
      rows.sort(key=lambda row: row["start"])
      text = " ".join(row["text"].strip() for row in rows)
      yield {"video": video, "text": text, "split": split}

  joined.__doc__ = f"Whole videos of {read.__doc__}"
  return joined


FORMATS: dict[str, Callable[[Paths], Iterator[Row]]] = {
  "activitynet": read_activitynet,
  "activitynet_paragraph": _paragraphs(read_activitynet),
  "didemo": read_didemo,
  "didemo_paragraph": _paragraphs(read_didemo),
  "hmdb51": read_hmdb51,
  "kinetics": read_kinetics,
  "msrvtt": read_msrvtt,
  "msvd": read_msvd,
  "ucf101": read_ucf101,
  "vatex": read_vatex,
  "webvid": read_webvid,
  "youcook2": read_youcook2,
}


@dataclasses.dataclass(frozen=True)
class Annotations:
  """Annotation files of one data set as a source of clips.

  Attributes:
    paths: of the files.
    form: one of FORMATS.
    root: the folder of the videos; that of the first file if None.
    allow_outside_root: whether a video may lie outside of `root`.
  """

  paths: tuple[pathlib.Path, ...]
  form: str
  root: str | None = None
  allow_outside_root: bool = False

  def digest(self) -> str:
    """Returns the SHA-256 of the files and of the format."""
    return digest_of(self.paths, self.form)

  def scan(self) -> tuple[list[Clip], list[Problem]]:
    """Reads the rows, and looks whether the videos exist."""
    root = self.root or self.paths[0].parent
    find = Finder(root, self.allow_outside_root)
    return clips_of_rows(self.paths[0], self._rows(), find)

  def _rows(self) -> Iterator[tuple[int, Row]]:
    try:
      yield from enumerate(FORMATS[self.form](self.paths), 1)
    except (
      KeyError, TypeError, ValueError, IndexError, AttributeError,
    ) as error:  # fmt: skip
      shape = (FORMATS[self.form].__doc__ or "").splitlines()[0]
      raise UserError(
        f"{self.paths[0]} is not as --format={self.form} has it"
        f" ({type(error).__name__}: {error}). {shape}"
      ) from None


def _split_of(path: pathlib.Path) -> str:
  """The split that a file's name says; train where it says none."""
  words = re.split(r"[^a-z]+", path.stem.lower())
  kinds = {
    "val": "val", "valid": "val", "validation": "val", "validate": "val",
    "test": "test", "testing": "test",
  }  # fmt: skip
  return next((kinds[word] for word in words if word in kinds), "train")


def _json(path: pathlib.Path) -> Any:
  check_plain_file(path)
  try:
    return json.loads(path.read_text(encoding="utf-8-sig"))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is not JSON: {error}") from None


def _lines(path: pathlib.Path) -> Iterator[str]:
  check_plain_file(path)
  with path.open(encoding="utf-8-sig") as file:
    yield from filter(None, map(str.strip, file))


def _csv(path: pathlib.Path, needed: Sequence[str]) -> Iterator[dict[str, str]]:
  check_plain_file(path)
  with path.open(encoding="utf-8-sig", newline="") as file:
    reader = csv.DictReader(file)
    missing = [name for name in needed if name not in (reader.fieldnames or [])]
    if missing:
      raise UserError(
        f"{path} has no column {missing[0]!r}; its columns are"
        f" {reader.fieldnames}"
      )
    yield from reader
