"""Captions to token ids and back.

By SentencePiece, trained by prepare; or by the tokenizer of another model (the
tokenizer.json of its folder), whose weights know its ids.
"""

import dataclasses
import io
import os
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from etils import epath

from calince_jax.data.tokenizer_json import JsonModel
from calince_jax.errors import UserError
from calince_jax.files import write_atomic

PAD, UNK, BOS, EOS, MASK = range(5)
MASK_TOKEN = "[MASK]"
MAX_TRAINING_TEXTS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """What a model needs to know of a tokenizer; the ids are `Tokenizer`'s.

  Attributes:
    size: number of ids.
    mask_id: the id that hides a token from the model; None: there is none.
    control_ids: ids that are never predicted: padding, begin, end.
  """

  size: int
  mask_id: int | None = MASK
  control_ids: tuple[int, ...] = (PAD, BOS, EOS)


def train_tokenizer(
  texts: Iterable[str], path: str | os.PathLike, *, vocab_size: int = 8000
) -> None:
  """Trains a byte-pair model on captions and writes it, whole or not at all.

  The same texts give the same bytes. Text is lower-cased and normalised
  (nmt_nfkc_cf). Of more than MAX_TRAINING_TEXTS texts every k-th is used.

  Args:
    texts: captions.
    path: of the model file to write.
    vocab_size: upper bound of the tokens of the vocabulary; few captions give
      fewer.

  Raises:
    UserError: there is no text to learn from, or vocab_size is too small.
  """
  texts = [" ".join(text.split()) for text in texts]
  texts = texts[:: 1 + len(texts) // MAX_TRAINING_TEXTS]
  if not any(texts):
    raise UserError("there are no captions to train the tokenizer on")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      model_type="bpe",
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      max_sentence_length=65536,  # bytes; longer texts are left out
      normalization_rule_name="nmt_nfkc_cf",
      pad_id=PAD,
      unk_id=UNK,
      bos_id=BOS,
      eos_id=EOS,
      user_defined_symbols=[MASK_TOKEN],
      num_threads=1,  # more threads give other bytes
      minloglevel=2,
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).rpartition("]")[2].strip() or "it is too small"
    if "required_chars" in reason:  # SentencePiece names flags of its own
      reason = "there are more characters than that; raise --vocab_size"
    raise UserError(
      f"the tokenizer cannot be trained on {len(texts)} captions with "
      f"vocab_size={vocab_size}: {reason}"
    ) from None
  write_atomic(path, model.getvalue())


class SentencePieceModel:
  """A trained model, with the attributes and methods of JsonModel."""

  pad, unknown, begin, end, mask = PAD, UNK, BOS, EOS, MASK

  def __init__(self, data: bytes, where: str):
    """Loads the content of a file.

    Raises:
      UserError: not a SentencePiece model, or one whose special tokens have
        other ids.
    """
    self._model = sentencepiece.SentencePieceProcessor()
    try:
      self._model.LoadFromSerializedProto(data)
      special = [self._model.id_to_piece(i) for i in range(MASK + 1)]
    except (RuntimeError, IndexError):
      raise UserError(
        f"{where} is not a SentencePiece model, nor a tokenizer.json"
      ) from None
    ids = (self._model.pad_id(), self._model.unk_id())
    ids += (self._model.bos_id(), self._model.eos_id())
    if ids != (PAD, UNK, BOS, EOS) or special[MASK] != MASK_TOKEN:
      raise UserError(
        f"{where} begins with the tokens {special}; needed are padding, "
        f"unknown, begin, end and {MASK_TOKEN}, as train_tokenizer writes them"
      )
    self.size = self._model.vocab_size()

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text."""
    # One thread: starting others takes longer than the captions of a batch.
    return self._model.encode(list(texts), out_type=int, num_threads=1)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids."""
    return self._model.decode(list(ids))


class Tokenizer:
  """Encodes captions; safe to call from threads.

  Attributes:
    vocab_size: the number of ids, including the special ones.
    vocabulary: what a model needs to know of it.
  """

  def __init__(self, path: str | os.PathLike):
    """Loads a SentencePiece model or a tokenizer.json, whatever its name.

    Raises:
      UserError: no such file, or neither of them; see the two classes.
    """
    try:
      data = epath.Path(path).read_bytes()
    except OSError as error:
      raise UserError(
        f"the tokenizer {path} cannot be read: {error.strerror}"
      ) from None
    is_json = data.lstrip()[:1] == b"{"
    self._model = (JsonModel if is_json else SentencePieceModel)(
      data, str(path)
    )
    self.vocab_size = self._model.size
    m = self._model
    # CLIP pads with its end: each id stands there once.
    control = tuple(dict.fromkeys((m.pad, m.begin, m.end)))
    self.vocabulary = Vocabulary(self.vocab_size, m.mask, control)

  def encode(
    self, texts: Sequence[str], length: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Encodes captions as begin, tokens, end, padding ...

    Too long ones are cut and keep their end. A caption that spells a special
    token gets the unknown one there, or none if there is no such token: only an
    objective masks.

    Args:
      texts: N captions.
      length: L, at least 2.

    Returns:
      ids int32 [N, L]; mask bool [N, L], True where real (begin and end too).

    Raises:
      UserError: a text is empty or white space.
    """
    if length < 2:
      raise ValueError(f"length {length}; begin and end alone need 2")
    for n, text in enumerate(texts):
      if not text.strip():
        raise UserError(f"text {n} of {len(texts)} is empty")
    ids = np.full((len(texts), length), self._model.pad, np.int32)
    mask = np.zeros((len(texts), length), bool)
    for n, tokens in enumerate(self._words(texts)):
      row = [self._model.begin, *tokens[: length - 2], self._model.end]
      ids[n, : len(row)] = row
      mask[n, : len(row)] = True
    return ids, mask

  def _words(self, texts):
    """The ids of each text, none of them special but the unknown one."""
    special = {*self.vocabulary.control_ids, self._model.mask}
    unknown = self._model.unknown
    instead = [] if unknown is None or unknown in special else [unknown]
    return [
      [j for i in tokens for j in (instead if i in special else [i])]
      for tokens in self._model.encode(texts)
    ]

  def lengths(self, texts: Sequence[str]) -> list[int]:
    """Returns how many tokens each text has, begin and end included."""
    return [len(tokens) + 2 for tokens in self._words(texts)]

  def decode(self, ids: np.ndarray) -> list[str]:
    """Decodes ids, int [N, L], to N texts without padding, begin and end."""
    silent = self.vocabulary.control_ids
    rows = np.asarray(ids).tolist()
    return [
      self._model.decode([i for i in row if i not in silent]) for row in rows
    ]
