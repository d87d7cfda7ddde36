"""Prepares a data set: lists the clips of a source, decodes, writes records.

    source.scan -> plan (shards) -> tokenizer -> shards -> metadata

One process writes all shards, or several at once each write a part of them
(parts.py), or the workers of Apache Beam do (beam.py): the bytes are the same.
Interrupted, the same work resumes at the first shard that is not written; on a
finished data set it returns at once.
"""

import functools
import os
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import tqdm

from calince_jax.data.problems import Ledger, Problem
from calince_jax.data.records import beam, caption_lengths, parts
from calince_jax.data.records.finish import join
from calince_jax.data.records.parts import Part
from calince_jax.data.records.plan import (
  Shard,
  begin,
  check_same,
  plan_shards,
  read_note,
  write_shard_of_clips,
)
from calince_jax.data.records.reader import read_info
from calince_jax.data.records.schema import DatasetInfo
from calince_jax.data.records.writer import check_splits
from calince_jax.data.sources.item import Clip, Source
from calince_jax.data.tokenizer import Tokenizer, train_tokenizer
from calince_jax.data.video.jpeg import Encoding
from calince_jax.data.video.workers import DecodeWorkers
from calince_jax.errors import UserError
from calince_jax.files import file_sha256, write_atomic


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
  part: Part = parts.ALL,
  beam_options: Sequence[str] | None = None,
) -> DatasetInfo | None:
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
    part: the shards to write; other processes write the others.
    beam_options: of the pipeline of Apache Beam that writes the shards; None:
      this process does.

  Returns:
    None where other processes have not yet written their shards.

  Raises:
    UserError: the source cannot be read, too many clips are unusable, `out`
      holds something else, or another process writes some of the same shards.
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
  workers = functools.partial(
    DecodeWorkers,
    encoding=encoding,
    time_limit=time_limit,
    memory_limit_mb=memory_limit_mb,
  )
  with parts.claim(out, part):
    total = len(clips) + len(problems)
    ledger = Ledger(_ledger_path(out, part), total, max_bad_fraction)
    with ledger:
      for problem in problems:
        ledger.add(problem)
      if not clips:
        raise UserError(f"no clip can be used: {ledger.reasons()}")
      _print_availability(clips, problems)
      plan = plan_shards(clips, clips_per_shard)
      check_splits(out, {shard.split for shard in plan})
      with parts.alone(out):
        if (out / "dataset.json").exists():
          return _reuse(out, settings)
        shared = parts.others_at_work(out, part)
        begin(out, settings, clips, shared=shared)
        _make_tokenizer(out, clips, tokenizer, vocab_size)
        if not (out / caption_lengths.NAME).exists():
          model = Tokenizer(out / "tokenizer.model")
          caption_lengths.write_lengths(out, clips, model)
      mine = plan[part.numbers]
      if beam_options is None:
        with workers(num_workers or len(os.sched_getaffinity(0))) as pool:
          _write_shards(out, mine, pool, ledger)
      else:
        missing = [shard for shard in mine if read_note(out, shard) is None]
        make = functools.partial(workers, num_workers or 1)
        beam.write_shards(out, missing, make, beam_options)
    try:
      with parts.alone(out):
        if not (out / "dataset.json").exists():
          return join(out, settings, clips, problems, plan, max_bad_fraction)
    except FileNotFoundError:  # the folder of the work is gone: it is done
      if not (out / "dataset.json").exists():
        raise
  return read_info(out)


def _ledger_path(out: pathlib.Path, part: Part) -> pathlib.Path:
  """Of the problems that this process finds, until all are joined."""
  if part == parts.ALL:
    return out / "ledger.csv"
  return out / parts.WORK_FOLDER / f"ledger-{part.k}-of-{part.n}.csv"


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
  parts.forget(out)
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
  shards: Sequence[Shard],
  workers: DecodeWorkers,
  ledger: Ledger,
) -> None:
  """Writes those shards that are not written yet."""
  notes = [read_note(out, shard) for shard in shards]
  for problem in (p for note in notes if note for p in note.problems):
    ledger.add(problem)
  missing = [s for s, n in zip(shards, notes, strict=True) if n is None]
  total = sum(len(shard.clips) for shard in shards)
  with tqdm.tqdm(
    desc="prepare",
    total=total,
    initial=total - sum(len(shard.clips) for shard in missing),
    unit=" clips",
    mininterval=0.5 if sys.stderr.isatty() else 15.0,
    postfix={"bad": len(ledger.problems)},
  ) as progress:

    def report(problem: Problem | None) -> None:
      if problem is not None:
        ledger.add(problem)
        progress.set_postfix(bad=len(ledger.problems), refresh=False)
      progress.update()

    for shard in missing:
      write_shard_of_clips(out, shard, workers, report)
