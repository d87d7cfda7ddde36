"""The work of clean, from pairs to files."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from calince_jax.cleaning import (
  cross_fit,
  features,
  folds,
  matrices,
  outputs,
  page,
  pictures,
)
from calince_jax.cleaning import pairs as pairs_lib
from calince_jax.cleaning.examine import Examined, examine
from calince_jax.data.records.reader import ClipReader
from calince_jax.data.sources.choose import MANIFEST, choose_source
from calince_jax.data.sources.item import Source
from calince_jax.errors import UserError
from calince_jax.files import (
  atomic_file,
  check_place,
  read_json,
  write_atomic,
)
from calince_jax.inference import encode, exported
from calince_jax.runtime import folder_lock

WORK = ".clean"
FOLD_BY = ("group", "clip")
DEFAULT_PRECISION = 0.95
BATCH = 32  # clips that are encoded at a time


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; clean.py says what each option is."""

  out: str
  manifest: str | None = None
  source: str | None = None
  format: str = MANIFEST
  columns: str = ""
  data: str | None = None
  root: str | None = None
  allow_outside_root: bool = False
  split: str = "train"
  video_features: str | None = None
  text_features: str | None = None
  model: str | None = None
  folds: int = 10
  fold_by: str = "group"
  keep: float | None = None
  keep_precision: float | None = None
  worst: int = 60
  seed: int = 0


def run(options: Options) -> list[str]:
  """Examines the pairs and writes OUT; prints progress and the summary.

  Raises:
    UserError: arguments that do not go together, features that lack clips,
      too few pairs, or OUT holds something else.
  """
  check(options)
  out = Path(options.out)
  pairs = open_pairs(options)
  with claimed(out, options) as work:
    video, text = make_matrices(options, pairs, work)
    groups = pairs.groups() if options.fold_by == "group" else [""] * len(pairs)
    fold, unit = folds.assign_folds(
      pairs.clip, groups, folds=options.folds, seed=options.seed
    )
    _, same = np.unique(
      [text.strip().lower() for text in pairs.texts], return_inverse=True
    )
    data = cross_fit.Data(video, text, same, pairs.clip, fold)
    print(
      f"{len(pairs):,} pairs, {options.folds} folds by {unit}, video features"
      f" [{video.shape[1]}], text features [{text.shape[1]}]",
      flush=True,
    )
    examined = examine(data, work, seed=options.seed, report=print)
    return write(options, out, pairs, examined, fold, unit)


def check(options: Options) -> None:
  """UserError where arguments contradict each other."""
  check_place("--out", options.out)
  given = [options.manifest, options.source, options.data]
  if sum(one is not None for one in given) != 1:
    raise UserError(
      "give --manifest=FILE, --source=... or --data=DIR, one of them"
    )
  if options.keep is not None and options.keep_precision is not None:
    raise UserError("give --keep or --keep_precision, not both")
  if options.model and not options.data:
    raise UserError(
      "--model encodes prepared clips: run python -m calince_jax.prepare on the"
      " manifest, and give --data=DIR in place of --manifest"
    )
  if not options.model and not options.video_features:
    raise UserError(
      "there is nothing to judge the videos by: give --video_features=FILE of"
      f" any model ({features.FORMS}; keys are clip ids), or --data with"
      " --model=EXPORT"
    )


def open_pairs(options: Options) -> pairs_lib.Pairs:
  """The pairs of the manifest or data set."""
  if options.data:
    return pairs_lib.of_data_set(options.data, options.split)
  return pairs_lib.of_source(_source(options), options.split)


def _source(options) -> Source:
  return choose_source(
    options.source or options.manifest or "",
    form=options.format,
    columns=options.columns,
    root=options.root,
    allow_outside_root=options.allow_outside_root,
  )


@contextlib.contextmanager
def claimed(out: Path, options: Options) -> Iterator[Path]:
  """Makes OUT and its folder of unfinished work, for the length of the block.

  Raises:
    UserError: another clean works in it, it was begun with other options, or
      it holds something else.
  """
  work = out / WORK
  if out.exists() and not out.is_dir():
    raise UserError(f"{out} is not a folder; choose another --out")
  if out.exists() and not work.exists() and any(out.iterdir()):
    raise UserError(
      f"{out} holds something else than a result of clean; choose another --out"
    )
  work.mkdir(parents=True, exist_ok=True)
  with folder_lock.held(work, "another clean", folder_lock.end_process):
    wanted = _digest(options)
    path = work / "options.json"
    if path.exists() and read_json(path) != wanted:
      if list(work.glob("round-*.npz")):
        raise UserError(
          f"{out} was begun with other options or other data; choose another"
          " --out, or delete it"
        )
      for stale in [*work.glob("*.npy"), *work.glob("*.npz")]:
        stale.unlink()  # of files that have been corrected since
    write_atomic(path, json.dumps(wanted))
    yield work


def _digest(options):
  """What decides the scores; what is kept and shown may change."""
  shown = {"out", "keep", "keep_precision", "worst"}
  wanted = {
    name: value
    for name, value in dataclasses.asdict(options).items()
    if name not in shown
  }
  read = _paths(options.video_features) + _paths(options.text_features)
  if options.data:
    read.append(f"{options.data}/dataset.json")
    wanted["pairs"] = options.data
  else:
    wanted["pairs"] = _source(options).digest()
  if options.model:
    read.append(f"{options.model}/config.json")
  for path in map(Path, read):
    # Features may be large: their size and time stand for them.
    if path.is_file():
      wanted[str(path)] = [path.stat().st_size, path.stat().st_mtime_ns]
  return wanted


def make_matrices(
  options: Options, pairs: pairs_lib.Pairs, work: Path
) -> tuple[np.ndarray, np.ndarray]:
  """The features of the pairs' clips and of their captions, [P, d], [P, e]."""
  ids = [pairs.clips[i].id for i in pairs.clip]
  video = [
    features.open_features(p, ids) for p in _paths(options.video_features)
  ]
  text = [
    features.open_features(path, pairs.texts)
    for path in _paths(options.text_features)
  ]
  if options.model:
    ours = _encoded(options, pairs, work)
    video.append(ours[0])
    text.append(ours[1])
  if not (work / "text.npy").exists():
    text.append(matrices.tfidf_features(pairs.texts, options.seed))
  return (
    matrices.write_matrix(work / "video.npy", video, len(pairs)),
    matrices.write_matrix(work / "text.npy", text, len(pairs)),
  )


def _paths(value):
  return [path for path in (value or "").split(",") if path]


def _encoded(options, pairs, work):
  """Features of our model, encoded once: [P, d] and [P, D]."""
  path = work / "encoded.npz"
  if not path.exists():
    model = exported.load(options.model)
    split = encode.open_split(
      ClipReader(options.data, options.split),
      model.tokenizer,
      model.sampling,
      text_length=model.config.text_length,
      batch_size=BATCH,
    )
    sums = encode.encode_videos(split, model.video_outputs)
    text = encode.encode_texts(
      split, lambda ids, mask: model.text_outputs(ids, mask)["embedding"]
    )
    with atomic_file(path) as partial, open(partial, "wb") as file:
      np.savez(file, video=sums["feature"], text=text)
  with np.load(path) as saved:
    return saved["video"][pairs.clip], saved["text"]


def write(
  options: Options,
  out: Path,
  pairs: pairs_lib.Pairs,
  examined: Examined,
  fold: np.ndarray,
  unit: str,
) -> list[str]:
  """Writes the tables, the filtered manifest and the page; prints a summary."""
  confidence = examined.posterior.confidence
  precision = options.keep_precision
  if options.keep is None and precision is None:
    precision = DEFAULT_PRECISION
  kept = outputs.kept_rows(
    confidence, keep=options.keep, keep_precision=precision
  )
  outputs.write_tables(out, outputs.pair_table(pairs, examined, fold))
  outputs.write_manifest(out / "clean.csv", pairs, confidence, kept)
  worst = np.argsort(confidence, kind="stable")[: options.worst]
  reader = ClipReader(options.data, options.split) if options.data else None
  shown = pictures.animations(pairs.clips, pairs.clip[worst], reader)
  title = Path(options.data or options.source or options.manifest).name
  facts = [
    ("pairs", f"{len(pairs):,}"),
    ("clips", f"{len(pairs.clips):,}"),
    ("split", options.split),
    ("folds", f"{options.folds}, by {unit}"),
    ("rounds", str(examined.rounds)),
    ("stay in clean.csv", f"{kept.sum():,}"),
  ]
  write_atomic(
    out / "report.html",
    page.render(title, pairs, examined, facts, worst, shown),
  )
  lines = [
    *outputs.summary(confidence, examined, pairs.matched),
    f"{kept.sum():,} pairs are in {out / 'clean.csv'}, of which"
    f" {100 * confidence[kept].mean():.1f} % are expected to fit; see"
    f" {out / 'report.html'}",
  ]
  print("\n".join(lines), flush=True)
  return lines
