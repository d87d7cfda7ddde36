"""How many tokens the captions of a data set have: captions.json.

    {SPLIT: [captions of 0, of 1, of 2 ... tokens]}

Begin and end are counted. So that training can say how many captions it cuts
without reading them. Clips that turned out unusable are counted, too.
"""

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from calince_jax.data.sources.item import Clip
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError
from calince_jax.files import write_atomic

NAME = "captions.json"


def write_lengths(
  directory: str | os.PathLike, clips: Sequence[Clip], tokenizer: Tokenizer
) -> None:
  """Counts the tokens of all captions, and writes the file."""
  texts: dict[str, list[str]] = {}
  for clip in clips:
    captions = texts.setdefault(clip.split, [])
    captions += [caption.text for caption in clip.captions]
  counts = {
    split: np.bincount(tokenizer.lengths(captions)).tolist()
    for split, captions in sorted(texts.items())
  }
  write_atomic(pathlib.Path(directory) / NAME, json.dumps(counts) + "\n")


def describe_cut(
  directory: str | os.PathLike, split: str, text_length: int
) -> str:
  """Says how many captions of a split have more than `text_length` tokens.

  Returns:
    A sentence; "" where none has, or the data set is older than the file.
  """
  try:
    counts = read_counts(directory, split)
  except UserError as error:
    return str(error)
  if counts is None:
    return ""
  total, cut = sum(counts), sum(counts[text_length + 1 :])
  if not cut:
    return ""
  return (
    f"{cut:,} of {total:,} captions ({cut / total:.0%}) of split {split} of"
    f" {directory} have more than {text_length} tokens, the longest"
    f" {len(counts) - 1}"
  )


def read_counts(directory: str | os.PathLike, split: str) -> list[int] | None:
  """Reads how many captions of a split have 0, 1, 2 ... tokens.

  Returns:
    None where the data set is older than the file.

  Raises:
    UserError: the file cannot be read.
  """
  path = pathlib.Path(directory) / NAME
  try:
    counts = json.loads(path.read_text(encoding="utf-8"))[split]
    sum(counts)
    return counts
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(
      f"{path} cannot be read ({error!r}); run prepare again"
    ) from None
