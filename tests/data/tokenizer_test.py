"""tokenizer: the layout of ids, determinism, and small corpora."""

import json
from pathlib import Path

import numpy as np
import pytest

from calince_jax.data import tokenizer as lib
from calince_jax.data.tokenizer import BOS, EOS, MASK, PAD, UNK
from calince_jax.errors import UserError

GOLDENS = Path(__file__).parent.parent / "goldens" / "towers"
TEXTS = [
  f"a {size} {colour} {shape} moves {way}"
  for size in ("small", "large")
  for colour in ("red", "green")
  for shape in ("square", "circle")
  for way in ("left", "right", "up")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp("model") / "tokenizer.model"
  lib.train_tokenizer(TEXTS, path, vocab_size=60)
  return path


def test_layout(model):
  tokens = lib.Tokenizer(model)
  ids, mask = tokens.encode([TEXTS[0], "a red"], 24)
  assert ids.shape == mask.shape == (2, 24)
  assert ids.dtype == np.int32 and mask.dtype == bool
  for row, real in zip(ids, mask, strict=True):
    n = real.sum()
    assert real[:n].all()
    assert row[0] == BOS and row[n - 1] == EOS
    assert (row[n:] == PAD).all()
    assert (row[1 : n - 1] > MASK).all()
  assert mask[0].sum() > mask[1].sum()
  assert 5 < tokens.vocab_size <= 60
  assert ids.max() < tokens.vocab_size


def test_decode_inverts_encode(model):
  tokens = lib.Tokenizer(model)
  assert tokens.decode(tokens.encode(TEXTS, 40)[0]) == TEXTS
  upper = [text.upper() for text in TEXTS]  # case is folded
  assert tokens.decode(tokens.encode(upper, 40)[0]) == TEXTS


def test_long_texts_are_cut_and_keep_their_end(model):
  tokens = lib.Tokenizer(model)
  full, _ = tokens.encode([TEXTS[0]], 40)
  ids, mask = tokens.encode([TEXTS[0]], 5)
  assert ids[0].tolist() == [*full[0, :4].tolist(), EOS]
  assert mask.all()
  assert tokens.encode([TEXTS[0]], 2)[0].tolist() == [[BOS, EOS]]
  with pytest.raises(ValueError, match="length 1"):
    tokens.encode([TEXTS[0]], 1)


def test_a_caption_cannot_mask(model):
  ids, _ = lib.Tokenizer(model).encode(["a [MASK] ☃ square"], 24)
  assert MASK not in ids
  assert (ids == UNK).sum() >= 2
  # The token is there for the objective.
  masked = np.array([[BOS, MASK, EOS]])
  assert "[MASK]" in lib.Tokenizer(model).decode(masked)[0]


def test_no_texts(model):
  ids, mask = lib.Tokenizer(model).encode([], 8)
  assert ids.shape == mask.shape == (0, 8)


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_an_empty_text_is_an_error(model, text):
  with pytest.raises(UserError, match="text 1 of 2 is empty"):
    lib.Tokenizer(model).encode(["a", text], 8)


def test_the_same_texts_give_the_same_bytes(model, tmp_path):
  lib.train_tokenizer(iter(TEXTS), tmp_path / "again", vocab_size=60)
  assert (tmp_path / "again").read_bytes() == model.read_bytes()
  lib.train_tokenizer(TEXTS, tmp_path / "less", vocab_size=40)
  assert lib.Tokenizer(tmp_path / "less").vocab_size <= 40


@pytest.mark.parametrize(
  "texts", [["a"], ["a b"] * 3, TEXTS[:10], ["猫が走る", "a\nb"], ["", "x"]]
)
def test_tiny_corpora(tmp_path, texts):
  lib.train_tokenizer(texts, tmp_path / "m")
  tokens = lib.Tokenizer(tmp_path / "m")
  real = [text for text in texts if text]
  ids, _ = tokens.encode(real, 32)
  assert UNK not in ids
  assert (tmp_path / "m").parent.exists() and not list(tmp_path.glob("*.part*"))


def test_errors_are_clear(tmp_path, model):
  with pytest.raises(UserError, match="no captions"):
    lib.train_tokenizer([" ", ""], tmp_path / "m")
  with pytest.raises(UserError, match=r"24 captions with vocab_size=8"):
    lib.train_tokenizer(TEXTS, tmp_path / "m", vocab_size=8)
  assert not (tmp_path / "m").exists()
  with pytest.raises(UserError, match="No such file"):
    lib.Tokenizer(tmp_path / "none")
  for content in (b"", b"no model" * 50, model.read_bytes()[:-100]):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(UserError, match=r"not a SentencePiece|begins with"):
      lib.Tokenizer(tmp_path / "bad")


def test_a_model_with_other_special_tokens_is_refused(tmp_path):
  import sentencepiece

  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS),
    model_prefix=str(tmp_path / "other"),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(UserError, match="begins with the tokens"):
    lib.Tokenizer(tmp_path / "other.model")


def published(name):
  return lib.Tokenizer(GOLDENS / name / "tokenizer.json")


def test_the_tokenizer_of_bert_has_its_own_special_ids():
  tokens = published("bert")
  assert tokens.vocab_size == 18
  assert tokens.vocabulary == lib.Vocabulary(18, 4, (0, 2, 3))
  ids, mask = tokens.encode(["The DOG jumps .", "a [MASK] [SEP] zebra"], 8)
  assert ids.tolist() == [[2, 11, 6, 9, 17, 3, 0, 0], [2, 5, 1, 1, 1, 3, 0, 0]]
  assert mask.sum(axis=1).tolist() == [6, 6]
  assert tokens.decode(ids)[0] == "the dog jumps."
  assert tokens.lengths(["a dog", "foxs a"]) == [4, 5]  # fox ##s a
  assert tokens.encode(["a dog runs"], 4)[0].tolist() == [[2, 5, 6, 3]]


def test_the_tokenizer_of_clip_pads_with_its_end_and_cannot_mask():
  tokens = published("clip")
  begin, end = tokens.vocab_size - 2, tokens.vocab_size - 1
  assert tokens.vocabulary == lib.Vocabulary(end + 1, None, (end, begin))
  ids, mask = tokens.encode(["dog", "do <|endoftext|> dog"], 6)
  assert ids[0, 0] == begin and (ids[0, 2:] == end).all()
  assert mask[0].sum() == 3
  # Its unknown token is its end, which stands at the end alone.
  assert (ids[1] == end).sum() == 1 + (~mask[1]).sum()
  assert tokens.decode(ids[:1]) == ["dog</w>"]


@pytest.mark.parametrize(
  "change, message",
  [
    ("{", "is not a tokenizer.json"),
    ('{"model": 1}', "is not a tokenizer.json"),
    (None, "puts 0 tokens round a text"),
  ],
)
def test_another_json_is_named(tmp_path, change, message):
  path = tmp_path / "tokenizer.json"
  if change is None:
    document = json.loads((GOLDENS / "bert" / "tokenizer.json").read_text())
    change = json.dumps(document | {"post_processor": None})
  path.write_text(change)
  with pytest.raises(UserError, match=message):
    lib.Tokenizer(path)
