"""The card of a prepared data set, as one self-contained page."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from calince_jax.data.problems import CorruptRecord
from calince_jax.data.records.reader import ClipReader
from calince_jax.evals.report import charts
from calince_jax.evals.report.page import templates
from calince_jax.evals.report.survey import Survey, groups, survey
from calince_jax.evals.report.thumbnails import film_strip

SHOWN = 24  # clips with pictures
LISTED = 8  # rows of a table
TEXT_LENGTHS = (16, 32, 64, 77, 128)  # tokens that a text tower may read
BARS = 24
NO_PICTURE = (CorruptRecord, OSError, ValueError, Image.DecompressionBombError)


def make_card(directory: Path, date: str) -> tuple[str, str]:
  """The page and, for the terminal, a sentence.

  Args:
    directory: a prepared data set.
    date: for the header.

  Raises:
    UserError: not a prepared data set, or a file of it is damaged.
  """
  found = survey(directory)
  splits = list(found.info.splits)
  readers = [ClipReader(directory, split) for split in splits]

  def head(clip: int) -> dict:
    reader = readers[found.clip_split[clip]]
    return reader.describe(int(found.clip_index[clip]))[0]

  def picture(clip: int) -> str:
    try:
      index = int(found.clip_index[clip])
      frames = readers[found.clip_split[clip]].clip(index)[1]
      # The three that a strip of film shows, and no other.
      n = len(frames)
      return film_strip(list(frames[[n // 6, n // 2, n - 1 - n // 6]]))
    except NO_PICTURE:
      return ""

  cards = _cards(found)
  page = (
    templates()
    .get_template("card.html")
    .render(
      title=found.info.name,
      facts=[
        ("prepared with", _settings(found)),
        ("card made", date),
      ],
      cards=cards,
      notes=_notes(found),
      charts=_charts(found),
      tables=_tables(found, head),
      shown=[_shown(head(i), picture(i)) for i in _drawn(found)],
    )
  )
  said = "; ".join(f"{card['label']}: {card['value']}" for card in cards)
  return page, said


def _settings(found: Survey) -> str:
  info = found.info
  return (
    f"{info.frame_rate:g} frames a second, shorter side {info.short_side} px"
  )


def _cards(found: Survey) -> list[dict[str, str]]:
  usable, bad = len(found.duration), found.reasons.total()
  hours = float(found.duration.sum(dtype=np.float64)) / 3600
  length = f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
  same = _extra(found.content)
  repeated = _extra(found.caption)
  return [
    {
      "label": "clips",
      "value": f"{usable:,}",
      "note": f"{length}, {sum(found.num_bytes.values()) / 1e6:,.1f} MB",
    },
    {
      "label": "captions",
      "value": f"{len(found.words):,}",
      "note": f"{np.median(found.words):.0f} words, half of them",
    },
    {
      "label": "unusable",
      "value": _percent(bad, usable + bad),
      "note": f"{bad:,} clips or rows in ledger.csv",
    },
    {
      "label": "clips with the frames of another one",
      "value": _percent(same, usable),
      "note": f"{same:,} beyond the first of each",
    },
    {
      "label": "captions that are repeated",
      "value": _percent(repeated, len(found.words)),
      "note": f"{repeated:,} beyond the first of each",
    },
  ]


def _notes(found: Survey) -> list[str]:
  """What to look at before training."""
  notes = []
  splits = list(found.info.splits)
  for i in range(len(splits)):
    for j in range(i):
      ours = found.content[found.clip_split == i]
      shared = int(np.isin(ours, found.content[found.clip_split == j]).sum())
      if shared:
        notes.append(
          f"{shared:,} clips of split {splits[i]} have the frames of a clip of"
          f" split {splits[j]}; evaluation on them is no test"
        )
  if found.corrupt:
    notes.append(
      f"{found.corrupt:,} records cannot be read and are left out here; copy"
      " the folder again, or run prepare again"
    )
  most = found.info.settings.get("max_frames")
  at_limit = int((found.frames == most).sum()) if most else 0
  if at_limit:
    notes.append(
      f"{at_limit:,} clips have the {most:,} frames that --max_frames allows;"
      " longer ones are cut there"
    )
  return notes


def _charts(found: Survey) -> list[dict]:
  rate = found.info.frame_rate
  return [
    {"title": title, "svg": charts.bar_chart(values, unit=unit, bars=BARS)}
    for title, values, unit in (
      ("Duration of a clip", found.duration, "s"),
      (f"Stored frames of a clip, {rate:g} a second", found.frames, "frames"),
      ("Words of a caption", found.words, "words"),
    )
  ]


def _tables(found: Survey, head: Callable[[int], dict]) -> list[dict]:
  tables = [
    _splits(found),
    _cut(found),
    _counted(
      "Frames' sizes",
      "size",
      "clips",
      {f"{width} x {height}": n for (width, height), n in found.sizes.items()},
    ),
    _counted("Labels", "label", "clips", found.labels),
    _counted("Why clips and rows are unusable", "reason", "", found.reasons),
    _same_clips(found, head),
    _same_captions(found, head),
  ]
  return [table for table in tables if table["rows"]]


def _splits(found: Survey) -> dict:
  rows = []
  for part, split in enumerate(found.info.splits):
    mine = found.clip_split == part
    captions = int(mine[found.caption_clip].sum())
    seconds = found.duration[mine]
    rows.append(
      [
        split,
        f"{mine.sum():,}",
        f"{captions:,}",
        f"{seconds.sum(dtype=np.float64) / 3600:,.2f}",
        f"{np.median(seconds) if len(seconds) else 0:.1f}",
        f"{found.num_bytes[split] / 1e6:,.1f}",
      ]
    )
  return {
    "title": "Splits",
    "note": "",
    "columns": ["", "clips", "captions", "hours", "median s", "MB"],
    "rows": rows,
  }


def _cut(found: Survey) -> dict:
  """How many captions a text tower of so many tokens cuts."""
  rows = []
  for split, counts in found.tokens.items():
    total = sum(counts)
    cut = [_percent(sum(counts[n + 1 :]), total) for n in TEXT_LENGTHS]
    rows.append([split, *cut, f"{len(counts) - 1:,}"])
  return {
    "title": "Captions that are cut, by config.data.text_length",
    "note": "In tokens of the data set's own tokenizer, begin and end counted.",
    "columns": ["", *map(str, TEXT_LENGTHS), "longest"],
    "rows": rows,
  }


def _counted(title: str, name: str, what: str, counts: dict[str, int]) -> dict:
  """The most frequent values, and how many others there are."""
  ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  total = sum(counts.values())
  rows = [
    [value, f"{n:,}", _percent(n, total)] for value, n in ordered[:LISTED]
  ]
  if len(ordered) > LISTED:
    rest = sum(n for _, n in ordered[LISTED:])
    others = f"{len(ordered) - LISTED:,} others"
    rows.append([others, f"{rest:,}", _percent(rest, total)])
  return {
    "title": title,
    "note": "",
    "columns": [name, what, "share"],
    "rows": rows,
  }


def _same_clips(found: Survey, head: Callable[[int], dict]) -> dict:
  first, counts = groups(found.content)
  rows = []
  for clip, count in zip(first[:LISTED], counts, strict=False):
    record = head(clip)
    rows.append([record["id"], f"{count:,}", record["texts"][0]])
  return {
    "title": "Clips with the same frames",
    "note": "Bytes and checksums of all stored frames agree.",
    "columns": ["first of them", "clips", "its caption"],
    "rows": rows,
  }


def _same_captions(found: Survey, head: Callable[[int], dict]) -> dict:
  first, counts = groups(found.caption)
  rows = []
  for pair, count in zip(first[:LISTED], counts, strict=False):
    clip = found.caption_clip[pair]
    place = int(pair - np.searchsorted(found.caption_clip, clip))
    rows.append([head(clip)["texts"][place], f"{count:,}"])
  return {
    "title": "Captions that are repeated",
    "note": "Letter case and spaces aside.",
    "columns": ["caption", "captions"],
    "rows": rows,
  }


def _drawn(found: Survey) -> Sequence[int]:
  """The clips that are shown: the same ones each time."""
  count = min(SHOWN, len(found.duration))
  rng = np.random.default_rng(0)
  return np.sort(rng.choice(len(found.duration), count, replace=False))


def _shown(record: dict, picture: str) -> dict:
  return {
    "id": record["id"],
    "texts": record["texts"][:3],
    "more": max(0, len(record["texts"]) - 3),
    "split": record["split"],
    "duration": record["duration"],
    "picture": picture,
  }


def _extra(keys: np.ndarray) -> int:
  """How many are repetitions of an earlier one."""
  return len(keys) - len(np.unique(keys))


def _percent(part: int, total: int) -> str:
  return f"{100 * part / total:.1f} %" if total else ""
