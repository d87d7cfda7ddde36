"""Prepares a data set: lists the clips of a source, decodes, writes records.

    source.scan -> plan (shards) -> tokenizer -> shards -> metadata

Interrupted, the same work resumes at the first shard that is not written; on a
finished data set it returns at once.
"""

import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import tqdm

from calince_jax.data.problems import Ledger, Problem
from calince_jax.data.records.caption_lengths import (
  describe_cut,
  write_lengths,
)
from calince_jax.data.records.frame_places import heads_path
from calince_jax.data.records.plan import (
  WORK_FOLDER,
  Note,
  Shard,
  begin,
  check_same,
  claim,
  plan_shards,
  read_note,
  write_shard_of_clips,
)
from calince_jax.data.records.reader import read_info
from calince_jax.data.records.schema import (
  FORMAT_VERSION,
  DatasetInfo,
  shard_path,
)
from calince_jax.data.records.writer import check_splits, write_info
from calince_jax.data.sources.item import Clip, Source
from calince_jax.data.tokenizer import Tokenizer, train_tokenizer
from calince_jax.data.video.jpeg import Encoding
from calince_jax.data.video.workers import DecodeWorkers
from calince_jax.errors import UserError
from calince_jax.files import file_sha256, write_atomic

DEFAULT_TEXT_LENGTH = 32  # tokens, of configs/base.py


def build(
  source: Source,
  out: str | os.PathLike,
  *,
  encoding: Encoding,
  tokenizer: str | None,
  vocab_size: int,
  clips_per_shard: int,
  num_workers: int,
  time_limit: float,
  memory_limit_mb: int,
  max_bad_fraction: float,
) -> DatasetInfo:
  """Prepares a data set, or resumes, or finds it prepared.

  Args:
    source: lists the clips.
    out: folder of the data set; it is made.
    encoding: how frames are stored.
    tokenizer: a file to copy, see data/tokenizer.py; None: one is trained on
      the captions of split `train`, or on all where there is no such split.
    vocab_size: upper bound of the vocabulary of a trained one.
    clips_per_shard: upper bound.
    num_workers: decoding processes; 0 for one a core.
    time_limit: seconds for one clip.
    memory_limit_mb: address space of one decoding process, in MiB.
    max_bad_fraction: share of the clips that may be unusable, in [0, 1].

  Raises:
    UserError: the source cannot be read, too many clips are unusable, or `out`
      holds something else.
  """
  out = pathlib.Path(out)
  settings = asdict(encoding) | {
    "clips_per_shard": clips_per_shard,
    "manifest_sha256": source.digest(),
  }
  if tokenizer is None:
    settings["vocab_size"] = vocab_size
  else:
    settings["tokenizer_sha256"] = file_sha256(tokenizer)
  if (out / "dataset.json").exists():
    return _reuse(out, settings)
  clips, problems = source.scan()
  workers = DecodeWorkers(
    num_workers or len(os.sched_getaffinity(0)),
    encoding,
    time_limit=time_limit,
    memory_limit_mb=memory_limit_mb,
  )
  with claim(out):
    ledger = Ledger(out, len(clips) + len(problems), max_bad_fraction)
    with ledger:
      for problem in problems:
        ledger.add(problem)
      if not clips:
        raise UserError(f"no clip can be used: {ledger.reasons()}")
      _print_availability(clips, problems)
      plan = plan_shards(clips, clips_per_shard)
      check_splits(out, {shard.split for shard in plan})
      begin(out, settings, clips)
      _make_tokenizer(out, clips, tokenizer, vocab_size)
      write_lengths(out, clips, Tokenizer(out / "tokenizer.model"))
      with workers:
        notes = _write_shards(out, plan, workers, ledger)
    info = _finish(out, settings, clips, plan, notes)
    _print_summary(out, info, plan, notes, ledger)
  return info


def _print_availability(
  clips: Sequence[Clip], problems: Sequence[Problem]
) -> None:
  missing = [p.path for p in problems if p.what == "no such file"]
  total = len(clips) + len(missing)
  first = f"; first missing: {missing[0]}" if missing else ""
  print(f"{len(clips):,} of {total:,} clips found{first}", flush=True)


def _reuse(out: pathlib.Path, settings: dict[str, Any]) -> DatasetInfo:
  info = read_info(out)
  check_same(
    out, {"manifest_sha256": info.manifest_sha256} | info.settings, settings
  )
  shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
  print(f"{out} is already prepared and is reused; delete it to start over")
  return info


def _make_tokenizer(
  out: pathlib.Path,
  clips: Sequence[Clip],
  tokenizer: str | None,
  vocab_size: int,
) -> None:
  path = out / "tokenizer.model"
  if path.exists():
    return
  if tokenizer is not None:
    Tokenizer(tokenizer)  # raises UserError if it is none
    write_atomic(path, pathlib.Path(tokenizer).read_bytes())
    return
  learned = [clip for clip in clips if clip.split == "train"] or clips
  texts = [caption.text for clip in learned for caption in clip.captions]
  train_tokenizer(texts, path, vocab_size=vocab_size)


def _write_shards(
  out: pathlib.Path,
  plan: Sequence[Shard],
  workers: DecodeWorkers,
  ledger: Ledger,
) -> list[Note]:
  """Writes the shards that are not written yet; returns the notes of all."""
  notes = [read_note(out, shard) for shard in plan]
  for problem in (p for note in notes if note for p in note.problems):
    ledger.add(problem)
  missing = [i for i, note in enumerate(notes) if note is None]
  total = sum(len(shard.clips) for shard in plan)
  with tqdm.tqdm(
    desc="prepare",
    total=total,
    initial=total - sum(len(plan[i].clips) for i in missing),
    unit=" clips",
    mininterval=0.5 if sys.stderr.isatty() else 15.0,
    postfix={"bad": len(ledger.problems)},
  ) as progress:

    def report(problem: Problem | None) -> None:
      if problem is not None:
        ledger.add(problem)
        progress.set_postfix(bad=len(ledger.problems), refresh=False)
      progress.update()

    for i in missing:
      notes[i] = write_shard_of_clips(out, plan[i], workers, report)
  return notes


def _finish(
  out: pathlib.Path,
  settings: dict[str, Any],
  clips: Sequence[Clip],
  plan: Sequence[Shard],
  notes: Sequence[Note],
) -> DatasetInfo:
  """Writes the metadata, dataset.json last, and removes the notes."""
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
  shutil.rmtree(out / WORK_FOLDER)
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
