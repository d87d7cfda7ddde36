"""Reads the manifest: which captions belong to which part of which video.

CSV, TSV (both with a header) or JSONL (one object a line), in UTF-8. Columns:

    video       file, relative to the manifest's folder or to `root`
    text        a caption of it
    start, end  seconds; empty = from the beginning, to the end
    id          name of the clip; empty = made of video, start and end
    label       class of the clip, for recognition
    split       train (if empty), val, test or another name
    group       what must not be split: a recording, a place, a day
    matched     1 = the text belongs to the video, 0 = it does not; the known
                truth, which only evaluation reads

Only video and text are needed; columns with other names are ignored. Rows with
the same video, start and end are several captions of one clip. One bad row
costs that row and is returned as a Problem; a file that cannot be read at all
is a UserError.
"""

import dataclasses
import math
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable

from calince_jax.data.problems import Problem
from calince_jax.data.sources.item import Caption, Clip, Media
from calince_jax.data.sources.manifest_rows import (
  MAX_CELL,
  check_manifest,
  printable,
  read_rows,
)
from calince_jax.errors import UserError
from calince_jax.files import file_sha256

COLUMNS = (
  "video", "text", "start", "end", "id", "label", "split", "group", "matched",
)  # fmt: skip
MAX_SECONDS = 1e9  # of start and end
# Fillers of Hangul and Khmer, and the Braille pattern without dots.
INVISIBLE = "\u115f\u1160\u3164\uffa0\u17b4\u17b5\u2800"


@dataclasses.dataclass(frozen=True)
class Manifest:
  """A manifest as a source of clips; see `read_manifest` for the arguments."""

  path: str
  root: str | None = None
  allow_outside_root: bool = False

  def digest(self) -> str:
    """Returns the SHA-256 of the file, in hex."""
    check_manifest(self.path)
    return file_sha256(self.path)

  def scan(self) -> tuple[list[Clip], list[Problem]]:
    """Reads the rows, and looks whether the videos exist."""
    return read_manifest(
      self.path, root=self.root, allow_outside_root=self.allow_outside_root
    )


class BadRow(Exception):
  """Why a row cannot be used: what, why, what_to_do."""


def read_manifest(
  path: str | os.PathLike,
  *,
  root: str | os.PathLike | None = None,
  allow_outside_root: bool = False,
) -> tuple[list[Clip], list[Problem]]:
  """Reads a manifest and checks that each video exists.

  Args:
    path: *.csv, *.tsv or *.jsonl.
    root: the folder that `video` is relative to; the manifest's if None.
    allow_outside_root: whether `video` may lead out of `root`, by an absolute
      path, by `..` or through a link.

  Returns:
    The usable clips in the order of their first rows, and what is not usable.

  Raises:
    UserError: the file as a whole cannot be read: it is missing, empty, of
      another kind, not UTF-8, or without a column `video` or `text`; or `root`
      is no folder.
  """
  path = pathlib.Path(path)
  root = os.path.realpath(path.parent if root is None else root)
  if not os.path.isdir(root):
    raise UserError(f"the root of the videos, {root}, is not a folder")

  def find(video):
    return Media(find_file(video, root, allow_outside_root))

  return clips_of_rows(path, read_rows(path), find)


def clips_of_rows(
  path: pathlib.Path,
  listed: Iterable[tuple[int, object]],
  find: Callable[[str], Media],
) -> tuple[list[Clip], list[Problem]]:
  """Makes clips of rows, wherever they come from.

  Args:
    path: names the source in messages.
    listed: (line, {column: str}), or (line, str) with what is wrong of a row;
      lines increase.
    find: the media of a row's `video`; raises BadRow.

  Returns:
    See `read_manifest`.
  """
  clips: dict[tuple, list[dict]] = {}
  problems: list[Problem] = []
  for line, row in listed:
    try:
      row = _check_row(row) | {"line": line}
      # ./a.mp4 is a.mp4; what .. leads to, a link may decide.
      name = "/".join(x for x in row["video"].split("/") if x != ".")
      rows = clips.setdefault((name, row["start"], row["end"]), [])
      _check_agreement(row, rows)
      rows.append(row)
    except BadRow as error:
      video = row.get("video") if isinstance(row, dict) else None
      what, why, what_to_do = error.args
      where = f"{path.name} line {line}"
      problems.append(
        Problem(printable(video or where), what, f"{where}: {why}", what_to_do)
      )
  used: dict[str, int] = {}
  good = []
  for rows in filter(None, clips.values()):
    try:
      file = find(rows[0]["video"])
      _check_id(rows[0], used)
      good.append((file, rows))
    except BadRow as error:
      what, why, what_to_do = error.args
      why = f"{path.name} line {rows[0]['line']}: {why}"
      video = printable(rows[0]["video"])
      problems.append(Problem(video, what, why, what_to_do))
  return _number_captions(good), problems


# ------------------------------------------------------------- one row


def _check_row(row: object) -> dict[str, object]:
  """Returns the row with every column, numbers parsed; raises BadRow."""
  if isinstance(row, str):
    raise BadRow("malformed row", row, "correct this row")
  cells = {}
  for column in COLUMNS:
    value = row.get(column)
    if isinstance(value, (dict, list)):
      raise BadRow(
        "malformed row", f"{column} is not a text or number", "correct this row"
      )
    if isinstance(value, bool):
      if column != "matched":
        raise BadRow(
          "malformed row",
          f"{column} is {str(value).lower()}, not a text",
          "correct this row",
        )
      value = int(value)
    cells[column] = "" if value is None else str(value).strip()
    if len(cells[column]) > MAX_CELL:
      raise BadRow(
        "too long",
        f"{column} has {len(cells[column]):,} characters, more than"
        f" {MAX_CELL:,}",
        "shorten it; is a quote or a line end missing?",
      )
    _check_characters(column, cells[column])
  if not cells["video"]:
    raise BadRow("no video", "the row names no video", "fill in the video")
  if _is_blank(cells["text"]):
    raise BadRow(
      "empty caption",
      "the text is empty or only white space",
      "write a caption or remove the row",
    )
  cells["split"] = cells["split"] or "train"
  # TFDS knows no name without letters and digits; `all` means all splits.
  if (
    not re.fullmatch(r"_*[A-Za-z0-9][A-Za-z0-9_]*", cells["split"])
    or len(cells["split"]) > 40
    or cells["split"].lower() == "all"
  ):
    raise BadRow(
      "bad split name",
      f"split {cells['split'][:40]!r}",
      "use at most 40 letters, digits and _, not only _, and not all: train,"
      " val, test",
    )
  if cells["matched"] not in ("", "0", "1"):
    raise BadRow(
      "bad number",
      f"matched is {cells['matched'][:40]!r}",
      "write 1 (belongs), 0 (does not) or nothing (not known)",
    )
  cells["matched"] = int(cells["matched"]) if cells["matched"] else None
  cells["start"] = _parse_seconds("start", cells["start"])
  cells["end"] = _parse_seconds("end", cells["end"])
  if cells["end"] is not None and cells["end"] <= (cells["start"] or 0.0):
    raise BadRow(
      "end before start",
      f"the clip ends at {cells['end']:g} s and starts at "
      f"{cells['start'] or 0.0:g} s",
      "write times in seconds from the video's beginning, end > start",
    )
  return cells


def _check_characters(column: str, value: str) -> None:
  try:
    value.encode()
  except UnicodeEncodeError:
    raise BadRow(
      "bad character",
      f"{column} holds half of a surrogate pair",
      "write the text as UTF-8",
    ) from None
  if "\0" in value:
    raise BadRow(
      "bad character", f"{column} holds a NUL character", "remove it"
    )


def _is_blank(text: str) -> bool:
  """Whether a reader would see nothing.

  White space, controls, zero width, marks without a letter below them, and
  letters that are drawn as nothing.
  """
  return all(
    unicodedata.category(char)[0] in "ZCM" or char in INVISIBLE for char in text
  )


def _parse_seconds(column: str, value: str) -> float | None:
  if not value:
    return None
  try:
    seconds = float(value)
  except ValueError:
    seconds = math.nan
  if not 0 <= seconds <= MAX_SECONDS:
    raise BadRow(
      "bad number",
      f"{column} is {value[:40]!r}",
      "write seconds, at least 0, such as 12.5",
    )
  return seconds


def _check_agreement(row: dict, rows: list[dict]) -> None:
  """Raises BadRow where two rows of one clip contradict each other."""
  for column in ("id", "label", "split", "group"):
    if rows and row[column] != rows[0][column]:
      raise BadRow(
        "conflicting rows",
        f"{column} is {row[column][:40]!r}, but line {rows[0]['line']} says "
        f"{rows[0][column][:40]!r} of the same clip",
        f"give all rows of a clip one {column}",
      )


# ------------------------------------------------------------- one clip


def find_file(video: str, root: str, allow_outside_root: bool) -> str:
  if re.match(r"[a-z]+://", video, re.IGNORECASE):
    raise BadRow(
      "an address", "the video is an address, not a file", "download it first"
    )
  try:
    path = os.path.realpath(os.path.join(root, video))
    inside = os.path.commonpath([root, path]) == root
    exists, is_file = os.path.exists(path), os.path.isfile(path)
  except OSError as error:  # a name that is too long, a loop of links
    raise BadRow("no such file", f"{error.strerror}", "check it") from None
  if not (inside or allow_outside_root):
    raise BadRow(
      "outside the root",
      f"the path leads out of {root}",
      "set --root to a folder that holds it, or --allow_outside_root",
    )
  if not is_file:
    why = "not a plain file" if exists else "not there"
    raise BadRow(
      "no such file",
      f"{printable(path)} is {why}{'' if exists else _similar_name(path)}",
      "check the name and --root, or download it again",
    )
  return path


def _similar_name(path: str) -> str:
  """What to say of a name that is there and looks the same."""
  for other, what in (
    (path.replace("\ufeff", ""), "without the byte-order mark in its name"),
    (unicodedata.normalize("NFC", path), "with composed letters (NFC)"),
    (unicodedata.normalize("NFD", path), "with decomposed letters (NFD)"),
  ):
    if other != path and os.path.exists(other):
      return f", but a file is {what}: write its name as it is"
  return ""


def _check_id(row: dict, used: dict[str, int]) -> None:
  """Makes an id where none is given; raises BadRow if the id is taken."""
  if not row["id"]:
    row["id"] = row["video"]
    if row["start"] is not None or row["end"] is not None:
      end = "" if row["end"] is None else f"{row['end']!r}"
      row["id"] += f"#{row['start'] or 0.0!r}-{end}"
  if row["id"] in used:
    raise BadRow(
      "duplicate id",
      f"the id {row['id'][:80]!r} is that of line {used[row['id']]}",
      "give each clip an id of its own, or none",
    )
  used[row["id"]] = row["line"]


def _number_captions(good: list[tuple[Media, list[dict]]]) -> list[Clip]:
  """Makes the clips; captions are numbered in the order of their lines."""
  lines = sorted(row["line"] for _, rows in good for row in rows)
  index = {line: i for i, line in enumerate(lines)}
  return [
    Clip(
      id=rows[0]["id"],
      video=rows[0]["video"],
      media=file,
      start=rows[0]["start"],
      end=rows[0]["end"],
      label=rows[0]["label"],
      split=rows[0]["split"],
      group=rows[0]["group"],
      captions=tuple(
        Caption(row["text"], index[row["line"]], row["matched"]) for row in rows
      ),
      line=rows[0]["line"],
    )
    for file, rows in good
  ]
