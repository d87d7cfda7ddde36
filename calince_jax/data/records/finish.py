"""The end of prepare: the notes of all shards become the metadata.

Whichever process finds that every shard is written does it. dataset.json comes
last, so that a folder that has one is whole.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from calince_jax.data.problems import Ledger, Problem
from calince_jax.data.records.caption_lengths import describe_cut
from calince_jax.data.records.frame_places import heads_path
from calince_jax.data.records.parts import forget
from calince_jax.data.records.plan import Note, Shard, read_note
from calince_jax.data.records.schema import (
  FORMAT_VERSION,
  DatasetInfo,
  shard_path,
)
from calince_jax.data.records.writer import write_info
from calince_jax.data.sources.item import Clip
from calince_jax.errors import UserError

DEFAULT_TEXT_LENGTH = 32  # tokens, of configs/base.py


def join(
  out: pathlib.Path,
  settings: dict[str, Any],
  clips: Sequence[Clip],
  problems: Sequence[Problem],
  plan: Sequence[Shard],
  max_bad_fraction: float,
) -> DatasetInfo | None:
  """Finishes the data set, if all its shards are written.

  Args:
    out: folder of the data set, held alone.
    settings: for dataset.json.
    clips, problems: from the source.
    plan: all shards.
    max_bad_fraction: share of the clips that may be unusable, in [0, 1].

  Returns:
    None where shards are missing.

  Raises:
    UserError: too many clips are unusable, or all.
  """
  notes = [read_note(out, shard) for shard in plan]
  missing = sum(note is None for note in notes)
  if missing:
    print(
      f"{missing:,} of {len(plan):,} shards of {out} are left for other"
      " processes; the last one makes the data set ready"
    )
    return None
  total = len(clips) + len(problems)
  ledger = Ledger(out / "ledger.csv", total, max_bad_fraction)
  with ledger:
    for problem in [*problems, *(p for note in notes for p in note.problems)]:
      ledger.add(problem)
  info = _write_metadata(out, settings, clips, plan, notes)
  forget(out)
  _print_summary(out, info, plan, notes, ledger)
  return info


def _write_metadata(
  out: pathlib.Path,
  settings: dict[str, Any],
  clips: Sequence[Clip],
  plan: Sequence[Shard],
  notes: Sequence[Note],
) -> DatasetInfo:
  """Writes the metadata, dataset.json last."""
  splits: dict[str, dict[str, int]] = {}
  sizes: dict[str, list[tuple[int, int]]] = {}
  for split in sorted({shard.split for shard in plan}):
    mine = [n for s, n in zip(plan, notes, strict=True) if s.split == split]
    if any(note.clips for note in mine):
      splits[split] = {
        "clips": sum(note.clips for note in mine),
        "pairs": sum(note.pairs for note in mine),
      }
      sizes[split] = [(note.clips, note.bytes) for note in mine]
    else:
      for shard in (s for s in plan if s.split == split):
        path = shard_path(out, split, shard.index, shard.count)
        path.unlink(missing_ok=True)
        heads_path(path).unlink(missing_ok=True)
  if not splits:
    raise UserError(f"no clip can be used; see {out / 'ledger.csv'}")
  info = DatasetInfo(
    format_version=FORMAT_VERSION,
    name=out.resolve().name,
    frame_rate=settings["frame_rate"],
    short_side=settings["short_side"],
    splits=splits,
    num_pairs=sum(len(clip.captions) for clip in clips),
    labels=sorted({label for note in notes for label in note.labels}),
    manifest_sha256=settings["manifest_sha256"],
    settings=settings,
  )
  write_info(out, info, sizes)
  return info


def _print_summary(
  out: pathlib.Path,
  info: DatasetInfo,
  plan: Sequence[Shard],
  notes: Sequence[Note],
  ledger: Ledger,
) -> None:
  print(f"{'split':<12}{'clips':>10}{'pairs':>10}{'MB':>10}{'unusable':>10}")
  for split in sorted({shard.split for shard in plan}):
    mine = [n for s, n in zip(plan, notes, strict=True) if s.split == split]
    row = [sum(getattr(n, key) for n in mine) for key in ("clips", "pairs")]
    size = sum(note.bytes for note in mine) / 1e6
    bad = sum(len(note.problems) for note in mine)
    print(f"{split:<12}{row[0]:>10}{row[1]:>10}{size:>10.1f}{bad:>10}")
    if split not in info.splits:
      print(f"note: no clip of split {split!r} can be used; it is left out")
  rows = len(ledger.problems) - sum(len(note.problems) for note in notes)
  if rows:
    print(f"{rows} rows of the manifest are unusable")
  if ledger.problems:
    print(f"why: {ledger.reasons()}; see {out / 'ledger.csv'}")
  cut = sum(note.cut for note in notes)
  if cut:
    seconds = info.settings["max_frames"] / info.frame_rate
    print(
      f"note: of {cut} clips longer than {seconds:g} s only the first "
      f"{info.settings['max_frames']} frames are kept (--max_frames)"
    )
  for split in info.splits:
    cut = describe_cut(out, split, DEFAULT_TEXT_LENGTH)
    if cut:
      print(
        f"note: {cut}; training cuts them unless config.data.text_length is"
        " larger"
      )
  print(f"{out} is ready")
