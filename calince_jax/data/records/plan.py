"""The unit of work of prepare: a shard is written whole or not at all.

Clips go to shards in an order fixed by their ids, so that each shard holds a
fair mixture. A finished shard has a note (in DIR/.prepare) with what went into
it and what could not be used; a shard is done when its note exists. So an
interrupted prepare resumes, and ends with the same bytes.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from calince_jax.data.problems import Problem
from calince_jax.data.records import caption_lengths
from calince_jax.data.records.frame_places import heads_path
from calince_jax.data.records.parts import WORK_FOLDER
from calince_jax.data.records.schema import FILE_PREFIX, shard_path
from calince_jax.data.records.writer import write_shard
from calince_jax.data.sources.item import UNKNOWN, Clip
from calince_jax.data.video.decode import DecodedClip
from calince_jax.data.video.open import ClipError
from calince_jax.data.video.workers import DecodeWorkers, Request
from calince_jax.errors import UserError
from calince_jax.files import write_atomic


@dataclasses.dataclass(frozen=True)
class Shard:
  """Clips of one split, written together as shard `index` of `count`."""

  split: str
  index: int
  count: int
  clips: tuple[Clip, ...]


@dataclasses.dataclass
class Note:
  """What went into a shard, and what could not be used.

  Attributes:
    clips, pairs: numbers of those written.
    bytes: size of the file.
    cut: clips of which only the first frames were kept.
    labels: of the written clips, sorted.
    problems: of the clips that could not be used.
  """

  clips: int = 0
  pairs: int = 0
  bytes: int = 0
  cut: int = 0
  labels: list[str] = dataclasses.field(default_factory=list)
  problems: list[Problem] = dataclasses.field(default_factory=list)


def plan_shards(clips: Sequence[Clip], clips_per_shard: int) -> list[Shard]:
  """Divides clips; the same clips give the same shards in any order."""
  splits: dict[str, list[Clip]] = {}
  for clip in clips:
    splits.setdefault(clip.split, []).append(clip)
  shards = []
  for split, members in sorted(splits.items()):
    members.sort(key=lambda clip: hashlib.sha256(clip.id.encode()).digest())
    count = -(-len(members) // clips_per_shard)
    bounds = [i * len(members) // count for i in range(count + 1)]
    for i in range(count):
      part = tuple(members[bounds[i] : bounds[i + 1]])
      shards.append(Shard(split, i, count, part))
  return shards


def read_note(directory: pathlib.Path, shard: Shard) -> Note | None:
  """Returns the note of a finished shard; None where it is to be written."""
  path = shard_path(directory, shard.split, shard.index, shard.count)
  try:
    note = Note(**json.loads(_note_path(path).read_text(encoding="utf-8")))
    if path.stat().st_size != note.bytes or not heads_path(path).exists():
      return None
    note.problems = [Problem(*fields) for fields in note.problems]
  except (FileNotFoundError, ValueError, TypeError):
    return None
  return note


def write_shard_of_clips(
  directory: pathlib.Path,
  shard: Shard,
  workers: DecodeWorkers,
  report: Callable[[Problem | None], None],
) -> Note:
  """Decodes the clips of a shard, and writes it and its note.

  It depends on nothing but its arguments: any process that sees the videos and
  `directory` can write any shard.

  Args:
    directory: of the data set; DIR/.prepare exists.
    shard: what to write.
    workers: decode the clips.
    report: called after each clip with its problem, or None; may raise, and
      then nothing is left behind.

  Raises:
    UserError: the shard cannot be written, or workers do not start.
  """
  note, labels = Note(), set()
  requests = [Request(clip.media, clip.start, clip.end) for clip in shard.clips]

  def records(results) -> Iterator[dict[str, Any]]:
    for clip, result in zip(shard.clips, results, strict=True):
      if isinstance(result, ClipError):
        note.problems.append(Problem(_name(clip), *result.args))
        report(note.problems[-1])
        continue
      yield make_record(clip, result)
      note.clips += 1
      note.pairs += len(clip.captions)
      note.cut += result.cut
      labels.add(clip.label)
      report(None)

  path = shard_path(directory, shard.split, shard.index, shard.count)
  with contextlib.closing(workers.read(requests)) as results:
    note.bytes = write_shard(path, records(results))
  note.labels = sorted(labels - {""})
  content = dataclasses.asdict(note)
  content["problems"] = [dataclasses.astuple(p) for p in note.problems]
  write_atomic(_note_path(path), json.dumps(content))
  return note


def make_record(clip: Clip, decoded: DecodedClip) -> dict[str, Any]:
  """Returns the fields of a record, see records/schema.py."""
  return {
    "id": clip.id,
    "frames": decoded.frames,
    "texts": [caption.text for caption in clip.captions],
    "pair_indices": [caption.pair_index for caption in clip.captions],
    "matched": [
      UNKNOWN if caption.matched is None else caption.matched
      for caption in clip.captions
    ],
    "label": clip.label,
    "split": clip.split,
    "group": clip.group,
    "duration": decoded.duration,
    "width": decoded.width,
    "height": decoded.height,
  }


def _note_path(path: pathlib.Path) -> pathlib.Path:
  return path.parent / WORK_FOLDER / (path.name + ".json")


def _name(clip: Clip) -> str:
  """Returns the video and, where the clip is a part of it, its times."""
  if clip.start is None and clip.end is None:
    return clip.video
  end = "" if clip.end is None else f"{clip.end:g}"
  return f"{clip.video} [{clip.start or 0:g}-{end} s]"


# ------------------------------------------------------------ the start


def begin(
  out: pathlib.Path,
  settings: dict[str, Any],
  clips: Sequence[Clip],
  *,
  shared: bool,
) -> None:
  """Starts the work, or checks that the work that was started is the same.

  Args:
    out: claimed, and held alone.
    settings: what decides the content, besides the videos.
    clips: the usable ones.
    shared: whether other processes are at work with what was started.

  Raises:
    UserError: there are shards of other settings or of another manifest.
  """
  wanted = settings | {"list of usable videos": _digest(clips)}
  path = out / WORK_FOLDER / "plan.json"
  if path.exists():
    try:
      started = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
      raise UserError(
        f"{path} cannot be read; delete {out} and run prepare again"
      ) from None
    if started == wanted:
      return
    if shared or [*path.parent.glob(f"{FILE_PREFIX}-*.json")]:
      check_same(out, started, wanted)  # for there are finished shards
    names = ("tokenizer.model", caption_lengths.NAME)
    for stale in [*(out / n for n in names), *out.glob(f"{FILE_PREFIX}-*")]:
      stale.unlink(missing_ok=True)
  write_atomic(path, json.dumps(wanted))


def _digest(clips: Sequence[Clip]) -> str:
  """Returns what tells two lists of clips apart, wherever the videos lie.

  The empty text stands where an earlier version had the path of the video.
  """
  content = [
    (
      clip.id,
      clip.video,
      "",
      clip.start,
      clip.end,
      clip.label,
      clip.split,
      clip.group,
      [dataclasses.astuple(caption) for caption in clip.captions],
      clip.line,
    )
    for clip in clips
  ]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_same(
  out: pathlib.Path, prepared: dict[str, Any], wanted: dict[str, Any]
) -> None:
  """Raises UserError where the settings of `prepared` are not those wanted."""
  names = sorted(prepared.keys() | wanted.keys())
  other = [n for n in names if prepared.get(n) != wanted.get(n)]
  if other:
    raise UserError(
      f"{out} was prepared with another {', '.join(other)}; choose another "
      "--out, or delete it"
    )
