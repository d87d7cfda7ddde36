"""The texts that lie beside a video, in a folder or a tar.

NAME.txt     a caption a line
NAME.json    {"text" or "caption": one or a list; further columns of a
             manifest: start, end, id, label, split, group, matched}
"""

import json
from collections.abc import Iterator
from typing import Any

from calince_jax.data.sources.manifest import COLUMNS

TEXT_SUFFIXES = (".txt", ".json")
# What video2dataset and webdataset call a caption.
TEXT_KEYS = ("text", "caption", "captions")


def rows_of(
  video: str, sidecars: dict[str, bytes]
) -> Iterator[dict[str, Any] | str]:
  """Yields the rows of one video, or what is wrong of them.

  Args:
    video: as the source names it.
    sidecars: {".txt": content, ".json": content}, those that there are. The
      captions of a .txt file count where there are both.
  """
  try:
    texts = {
      suffix: content.decode("utf-8-sig")
      for suffix, content in sidecars.items()
    }
  except UnicodeDecodeError:
    yield f"the text beside {video} is not UTF-8"
    return
  columns: dict[str, Any] = {}
  captions: list[Any] = []
  if ".json" in texts:
    try:
      document = json.loads(texts[".json"])
    except (ValueError, RecursionError):
      document = None
    if not isinstance(document, dict):
      yield f"the .json file beside {video} is not a JSON object"
      return
    columns = {c: document[c] for c in COLUMNS if c in document}
    given = [document[key] for key in TEXT_KEYS if document.get(key)]
    captions = given[0] if given and isinstance(given[0], list) else given[:1]
  if ".txt" in texts:
    captions = [line for line in texts[".txt"].splitlines() if line.strip()]
  for text in captions or [""]:
    yield {**columns, "video": video, "text": text}
