"""Reads the rows of a manifest file; manifest.py checks what they say."""

import csv
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

from calince_jax.errors import UserError
from calince_jax.files import check_plain_file

SUFFIXES = (".csv", ".tsv", ".jsonl")
MAX_LINE = 2**24  # characters; a longer line cannot be a manifest's
MAX_CELL = 2**17  # characters; a longer cell costs its row


def check_manifest(path: str | os.PathLike) -> None:
  """Raises UserError unless there is a file."""
  if os.path.isdir(path):
    raise UserError(
      f"{path} cannot be read: it is a folder, not a plain file; a manifest is"
      f" a file ({', '.join(SUFFIXES)}) with the columns video and text, a row"
      " for each caption, that names the videos of a folder"
    )
  check_plain_file(path)


def read_rows(
  path: pathlib.Path, needed: Sequence[str] = ("video", "text")
) -> Iterator[tuple[int, object]]:
  """Yields (line, {column: str}), or (line, str) with what is wrong of a row.

  Args:
    path: of the file.
    needed: columns that it must have.

  Raises:
    UserError: the file as a whole cannot be read.
  """
  check_manifest(path)
  suffix = path.suffix.lower()
  if suffix not in SUFFIXES:
    raise UserError(
      f"{path}: a manifest is one of {', '.join(SUFFIXES)}, not "
      f"{path.suffix or 'a file without extension'}"
    )
  try:
    if suffix == ".jsonl":
      rows = _parse_jsonl(path, needed)
    else:
      rows = _parse_csv(path, "," if suffix == ".csv" else "\t", needed)
    count = 0
    for row in rows:
      count += 1
      yield row
  except UnicodeDecodeError:
    raise _not_utf8(path) from None
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from None
  if not count:
    raise UserError(f"{path} holds no rows; each row names a video and a text")


def _read_lines(path: pathlib.Path, newline: str) -> Iterator[str]:
  """Yields lines with their ends, one at a time: a manifest may be large."""
  with open(path, encoding="utf-8-sig", newline=newline) as file:
    number, blank = 0, True
    while line := file.readline(MAX_LINE):
      number += 1
      if number == 1:
        line = line.lstrip("\ufeff")  # a second mark of a tool that adds one
      if len(line) == MAX_LINE:
        raise UserError(
          f"{path} line {number} has {MAX_LINE:,} characters or more: it is no "
          "manifest, or its line ends are missing"
        )
      blank = blank and not line.strip()
      yield line
  if blank:
    raise UserError(f"{path} is empty; it needs a header: video,text")


def _not_utf8(path: pathlib.Path) -> UserError:
  """Finds the first line that is not; no character holds a line end."""
  with open(path, "rb") as file:
    for number, line in enumerate(file, 1):
      try:
        line.decode()
      except UnicodeDecodeError as error:
        return UserError(
          f"{path} line {number} is not UTF-8 (byte "
          f"0x{line[error.start]:02x}); save the file as UTF-8, or convert it "
          "with iconv -f LATIN1 -t UTF-8 or iconv -f UTF-16 -t UTF-8"
        )
  return UserError(f"{path} changed while it was read; try again")


def _parse_csv(
  path: pathlib.Path, delimiter: str, needed: Sequence[str]
) -> Iterator[tuple[int, object]]:
  csv.field_size_limit(2 * MAX_LINE)  # ours is MAX_CELL, and costs one row
  reader = csv.reader(_read_lines(path, ""), delimiter=delimiter, strict=True)
  header = None
  line = 1  # a quoted field may hold line ends: a row begins after the last
  try:
    for fields in reader:
      first, line = line, reader.line_num + 1
      if not any(field.strip() for field in fields):
        continue
      if header is None:
        header = [field.strip() for field in fields]
        _check_header(path, header, needed)
      elif len(fields) != len(header):
        yield first, f"{len(fields)} fields where the header has {len(header)}"
      else:
        yield first, dict(zip(header, fields, strict=True))
  except csv.Error as error:
    raise UserError(
      f"{path} line {line} is not well-formed ({error}); a field with a "
      "comma, tab, quote or line end in it stands in double quotes, and a "
      'quote in it is written twice: "he said ""go"""'
    ) from None


def _parse_jsonl(
  path: pathlib.Path, needed: Sequence[str]
) -> Iterator[tuple[int, object]]:
  first = True
  for line, content in enumerate(_read_lines(path, "\n"), 1):
    if not content.strip():
      continue
    try:
      row = json.loads(content)
    except (ValueError, RecursionError):
      row = None
    if not isinstance(row, dict):
      yield line, "not a JSON object"
    else:
      if first:
        _check_header(path, list(row), needed)
        first = False
      yield line, row


def _check_header(
  path: pathlib.Path, header: list[str], needed: Sequence[str]
) -> None:
  for column in needed:
    if column not in header:
      names = ", ".join(repr(printable(name)[:40]) for name in header[:20])
      more = ", ..." if len(header) > 20 else ""
      raise UserError(
        f"{path} has no column {column!r}; its columns are [{names}{more}];"
        " other names are told with --columns=video:...,text:..."
      )
  twice = sorted({name for name in header if header.count(name) > 1} - {""})
  if twice:
    raise UserError(f"{path} has the column {twice[0][:40]!r} twice")


def printable(text: object) -> str:
  """A name fit for a message, whatever stood in the file."""
  return str(text).encode("utf-8", "replace").decode()[:200]
