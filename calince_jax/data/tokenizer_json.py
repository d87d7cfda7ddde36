"""Another model's tokenizer: the tokenizer.json of its folder.

WordPiece (BERT), byte-pair (CLIP) and others, by the package `tokenizers`. The
ids of its special tokens are its own.
"""

import json
import os
from collections.abc import Sequence

from calince_jax.errors import UserError

# One thread: starting others takes longer than the captions of a batch.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PADDINGS = ("[PAD]", "<pad>")
MASKS = ("[MASK]", "<mask>")


class JsonModel:
  """Texts to ids and back, without begin and end.

  Attributes:
    pad, begin, end: ids.
    unknown, mask: ids, None where it has none.
    size: number of ids.
  """

  def __init__(self, data: bytes, where: str):
    """Loads the content of a tokenizer.json.

    Raises:
      UserError: it is none, or puts other than a begin and an end round a text.
    """
    import tokenizers  # where it is needed alone

    try:
      self._model = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
      unknown = json.loads(data)["model"].get("unk_token")
    except Exception as error:  # tokenizers raises that class alone
      why = " ".join(str(error).split())[:200]
      raise UserError(f"{where} is not a tokenizer.json: {why}") from None
    padding = self._model.padding
    self._model.no_truncation()
    self._model.no_padding()
    around = self._model.encode("").ids
    if len(around) != 2:
      raise UserError(
        f"{where} puts {len(around)} tokens round a text; needed are one before"
        " it and one after"
      )
    self.begin, self.end = around
    self.mask = self._first(MASKS)
    self.unknown = self._first([unknown] if isinstance(unknown, str) else [])
    self.pad = self._first(PADDINGS)
    if padding:
      self.pad = padding["pad_id"]
    elif self.pad is None:
      self.pad = self.end  # as CLIP
    self.size = 1 + max(self._model.get_vocab().values())

  def _first(self, names):
    ids = [self._model.token_to_id(name) for name in names]
    return next((i for i in ids if i is not None), None)

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text."""
    found = self._model.encode_batch(list(texts), add_special_tokens=False)
    return [one.ids for one in found]

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids."""
    return self._model.decode(list(ids), skip_special_tokens=False)
