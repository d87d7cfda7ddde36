"""From what a user names to a source of clips.

clips.csv  clips.tsv  clips.jsonl     manifest.py
clips.parquet, other column names     tables.py
msrvtt.json, trainlist01.txt, ...     annotations.py, with --format
folder                                folder.py: NAME.mp4 with NAME.txt
'shard-{000..099}.tar'                tars.py: webdataset, video2dataset
"""

import glob
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from calince_jax.data.sources.annotations import FORMATS, Annotations
from calince_jax.data.sources.folder import Folder
from calince_jax.data.sources.item import Source
from calince_jax.data.sources.manifest import COLUMNS, Manifest
from calince_jax.data.sources.manifest_rows import SUFFIXES
from calince_jax.data.sources.tables import Table
from calince_jax.data.sources.tars import Tars
from calince_jax.errors import UserError, check_choice

MANIFEST = "manifest"  # the format of what is no published annotation file


def choose_source(
  names: str,
  *,
  form: str = MANIFEST,
  columns: str = "",
  root: str | None = None,
  allow_outside_root: bool = False,
) -> Source:
  """Returns the source that reads `names`.

  Args:
    names: of a folder or of files, separated by commas; `{000..099}` and `*`
      stand for several.
    form: `manifest`, or one of annotations.FORMATS.
    columns: `video:contentUrl,text:name` where a table has other names.
    root: the folder of the videos; that of the first file if None.
    allow_outside_root: whether a video may lie outside of `root`.

  Raises:
    UserError: nothing reads it; the message says what can be read.
  """
  check_choice("--format", form, [MANIFEST, *FORMATS])
  paths = expand(names)
  suffixes = {path.suffix.lower() for path in paths}
  where = {"root": root, "allow_outside_root": allow_outside_root}
  renamed = parse_columns(columns)
  if form != MANIFEST:
    if renamed:
      raise UserError(
        f"--format={form} has its own columns; leave out --columns"
      )
    return Annotations(tuple(paths), form, **where)
  if suffixes == {".tar"}:
    return Tars(tuple(paths))
  if len(paths) == 1 and paths[0].is_dir():
    return Folder(paths[0])
  if len(paths) == 1 and suffixes <= {*SUFFIXES} and not renamed:
    return Manifest(str(paths[0]), **where)
  if len(paths) == 1 and suffixes <= {*SUFFIXES, ".parquet"}:
    return Table(paths[0], tuple(renamed.items()), **where)
  raise UserError(
    f"{names} cannot be read as clips. What can: a table"
    f" ({', '.join(SUFFIXES)}, .parquet) with the columns video and text, or"
    " with --columns=video:...,text:...; uncompressed .tar files of"
    " webdataset (gunzip .tar.gz first); a folder of NAME.mp4 with NAME.txt or"
    f" NAME.json; with --format, the annotations of {', '.join(FORMATS)}"
  )


def parse_columns(text: str) -> dict[str, str]:
  """Parses --columns into {our column: the table's}."""
  pairs = [pair.partition(":") for pair in text.split(",") if pair]
  wrong = [a + b + c for a, b, c in pairs if a not in COLUMNS or not c]
  if wrong:
    raise UserError(
      f"--columns has {wrong[0]!r}; write OURS:THEIRS, such as"
      f" video:contentUrl,text:name. Ours are {', '.join(COLUMNS)}"
    )
  return {ours: theirs for ours, _, theirs in pairs}


def expand(names: str) -> list[pathlib.Path]:
  """Returns the files that are named, in order.

  Raises:
    UserError: a pattern with * names none.
  """
  if os.path.exists(names):  # whatever stands in its name
    return [pathlib.Path(names)]
  paths = []
  for name in re.split(r",(?![^{]*\})", names):
    for one in _braces(name):
      found = sorted(glob.glob(one)) if glob.has_magic(one) else [one]
      if not found:
        raise UserError(f"no file is named {one}")
      paths += [pathlib.Path(os.fspath(path)) for path in found]
  return paths


def _braces(text: str) -> Iterator[str]:
  """Yields a{00..02}b and a{x,y}b written out."""
  match = re.search(r"\{([^{}]*)\}", text)
  if not match:
    yield text
    return
  numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
  if numbers:
    width = len(numbers[1])
    first, last = int(numbers[1]), int(numbers[2])
    inside: Sequence[str] = [f"{n:0{width}d}" for n in range(first, last + 1)]
  else:
    inside = match[1].split(",")
  rest = list(_braces(text[match.end() :]))
  for middle, end in itertools.product(inside, rest):
    yield text[: match.start()] + middle + end
