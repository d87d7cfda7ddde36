"""Makes a data set for training from videos and a manifest of captions.

    python -m calince_jax.prepare --manifest=clips.csv --out=DIR

Reads the manifest (data/sources/manifest.py), scans every video in child
processes, and writes records of JPEG frames with their texts
(data/records/clip_dataset.py) and a tokenizer trained on the captions. What
cannot be used is listed in DIR/ledger.csv: path, what, why, what to do.
Interrupted, the same command goes on where it was; repeated, it finds its work
done.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import tqdm
from absl import flags

from calince_jax import cli
from calince_jax.data.problems import Ledger
from calince_jax.data.records import clip_dataset
from calince_jax.data.records.plan import (
  WORK_FOLDER,
  Note,
  Shard,
  begin,
  check_same,
  claim,
  plan_shards,
  read_note,
  write_clips,
)
from calince_jax.data.sources.manifest import Clip, Problem, read_manifest
from calince_jax.data.sources.manifest_rows import check_plain_file
from calince_jax.data.tokenizer import Tokenizer, train_tokenizer
from calince_jax.data.video import workers as decode_workers
from calince_jax.data.video.jpeg import Encoding
from calince_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; `define_flags` says what each is."""

  manifest: str
  out: str
  root: str | None = None
  allow_outside_root: bool = False
  frame_rate: float = Encoding.frame_rate
  short_side: int = Encoding.short_side
  max_frames: int = Encoding.max_frames
  jpeg_quality: int = Encoding.jpeg_quality
  vocab_size: int = 8000
  tokenizer: str | None = None
  clips_per_shard: int = 256
  num_workers: int = 0
  time_limit: float = 60.0
  memory_limit_mb: int = 4096
  max_bad_fraction: float = 0.1

  @property
  def encoding(self) -> Encoding:
    names = [field.name for field in dataclasses.fields(Encoding)]
    return Encoding(**{name: getattr(self, name) for name in names})


def define_flags() -> None:
  """Defines the command line; not at import, which would claim the names."""
  text, number = flags.DEFINE_string, flags.DEFINE_integer
  real, default = flags.DEFINE_float, Options
  text("manifest", None, "*.csv, *.tsv or *.jsonl with video,text")
  text("out", None, "folder of the data set to make")
  text("root", None, "what paths are relative to; else the manifest's folder")
  flags.DEFINE_bool("allow_outside_root", False, "use videos outside root")
  real("frame_rate", default.frame_rate, "stored frames a second", 0.01, 240)
  number("short_side", default.short_side, "upper bound in pixels", 8, 4096)
  number("max_frames", default.max_frames, "kept of one clip", 1, 100_000)
  number("jpeg_quality", default.jpeg_quality, "of the frames", 1, 95)
  most = "upper bound of the pieces"
  number("vocab_size", default.vocab_size, most, 8, 1_000_000)
  text("tokenizer", None, "a model to use; else one is trained on captions")
  number("clips_per_shard", default.clips_per_shard, "unit of resumed work", 1)
  number("num_workers", 0, "decoding processes; 0 = one a core", 0, 1024)
  real("time_limit", default.time_limit, "seconds for one clip", 0.001, 86_400)
  number("memory_limit_mb", default.memory_limit_mb, "of one process", 1, 2**20)
  real("max_bad_fraction", default.max_bad_fraction, "else it stops", 0.0, 1.0)
  flags.mark_flags_as_required(["manifest", "out"])


def prepare(options: Options) -> clip_dataset.DatasetInfo:
  """Makes the data set, or goes on with it.

  Raises:
    UserError: the manifest cannot be read, too many clips are unusable, or
      options.out holds something else.
  """
  out = pathlib.Path(options.out)
  settings = _settings(options)
  if (out / "dataset.json").exists():
    return _reuse(out, settings)
  clips, problems = read_manifest(
    options.manifest,
    root=options.root,
    allow_outside_root=options.allow_outside_root,
  )
  with claim(out):
    ledger = Ledger(out, len(clips) + len(problems), options.max_bad_fraction)
    with ledger:
      for problem in problems:
        ledger.add(problem)
      if not clips:
        raise UserError(f"no clip can be used: {ledger.reasons()}")
      plan = plan_shards(clips, options.clips_per_shard)
      begin(out, settings, clips)
      _make_tokenizer(out, options, clips)
      notes = _write_shards(out, options, plan, ledger)
    info = _finish(out, settings, clips, plan, notes)
    _print_summary(out, info, plan, notes, ledger)
  return info


# ------------------------------------------------------------ the folder


def _settings(options: Options) -> dict[str, Any]:
  """What decides the content of the data set, besides the videos."""
  settings = dataclasses.asdict(options.encoding)
  settings["clips_per_shard"] = options.clips_per_shard
  settings["manifest_sha256"] = _sha256(options.manifest)
  if options.tokenizer is None:
    settings["vocab_size"] = options.vocab_size
  else:
    settings["tokenizer_sha256"] = _sha256(options.tokenizer)
  return settings


def _sha256(path: str) -> str:
  check_plain_file(path)
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _reuse(
  out: pathlib.Path, settings: dict[str, Any]
) -> clip_dataset.DatasetInfo:
  info = clip_dataset.read_info(out)
  check_same(
    out, {"manifest_sha256": info.manifest_sha256} | info.settings, settings
  )
  shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
  print(f"{out} is already prepared and is reused; delete it to start anew")
  return info


def _make_tokenizer(
  out: pathlib.Path, options: Options, clips: Sequence[Clip]
) -> None:
  path = out / "tokenizer.model"
  if path.exists():
    return
  if options.tokenizer is not None:
    Tokenizer(options.tokenizer)  # is it one?
    partial = path.with_name("tokenizer.model.partial")
    shutil.copyfile(options.tokenizer, partial)
    clip_dataset.replace_file(partial, path)
    return
  learned = [clip for clip in clips if clip.split == "train"] or clips
  texts = [caption.text for clip in learned for caption in clip.captions]
  train_tokenizer(texts, path, vocab_size=options.vocab_size)


# ------------------------------------------------------------ the work


def _write_shards(
  out: pathlib.Path,
  options: Options,
  plan: Sequence[Shard],
  ledger: Ledger,
) -> list[Note]:
  """Writes the shards that are not there; returns the notes of all."""
  notes = [read_note(out, shard) for shard in plan]
  for problem in (p for note in notes if note for p in note.problems):
    ledger.add(problem)
  missing = [i for i, note in enumerate(notes) if note is None]
  requests = (
    decode_workers.Request(clip.path, clip.start, clip.end)
    for i in missing
    for clip in plan[i].clips
  )
  count = options.num_workers or len(os.sched_getaffinity(0))
  total = sum(len(shard.clips) for shard in plan)
  with (
    decode_workers.DecodeWorkers(
      count,
      options.encoding,
      time_limit=options.time_limit,
      memory_limit_mb=options.memory_limit_mb,
    ) as workers,
    tqdm.tqdm(
      desc="prepare",
      total=total,
      initial=total - sum(len(plan[i].clips) for i in missing),
      unit=" clips",
      mininterval=0.5 if sys.stderr.isatty() else 15.0,
      postfix={"bad": len(ledger.problems)},
    ) as progress,
  ):

    def report(problem: Problem | None) -> None:
      if problem is not None:
        ledger.add(problem)
        progress.set_postfix(bad=len(ledger.problems), refresh=False)
      progress.update()

    results = workers.read(requests)
    for i in missing:
      notes[i] = write_clips(out, plan[i], results, report)
  return notes


def _finish(
  out: pathlib.Path,
  settings: dict[str, Any],
  clips: Sequence[Clip],
  plan: Sequence[Shard],
  notes: Sequence[Note],
) -> clip_dataset.DatasetInfo:
  """Writes the metadata, dataset.json last; removes the notes."""
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
        path = clip_dataset.shard_path(out, split, shard.index, shard.count)
        path.unlink(missing_ok=True)
  if not splits:
    raise UserError(f"no clip can be used; see {out / 'ledger.csv'}")
  info = clip_dataset.DatasetInfo(
    format_version=clip_dataset.FORMAT_VERSION,
    name=out.resolve().name,
    frame_rate=settings["frame_rate"],
    short_side=settings["short_side"],
    splits=splits,
    num_pairs=sum(len(clip.captions) for clip in clips),
    labels=sorted({label for note in notes for label in note.labels}),
    manifest_sha256=settings["manifest_sha256"],
    settings=settings,
  )
  clip_dataset.write_info(out, info, sizes)
  shutil.rmtree(out / WORK_FOLDER)
  return info


def _print_summary(
  out: pathlib.Path,
  info: clip_dataset.DatasetInfo,
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
  print(f"{out} is ready")


if __name__ == "__main__":
  define_flags()
  cli.run(lambda: prepare(cli.options(Options)))
