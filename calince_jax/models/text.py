"""The text towers: one transformer with padding masked, in three forms.

`transformer`, this project's own; `bert`, that of BERT (Devlin et al., 2019),
DistilBERT and MiniLM; `clip_text`, that of CLIP (Radford et al., 2021).
"""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from calince_jax import fields
from calince_jax.fields import Check, OneOf, Range
from calince_jax.models import transformer
from calince_jax.models.activation_sharding import gathered, looked_up, spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTransformerSettings:
  """`config.model.text` where its name is `transformer`."""

  name: Annotated[str, OneOf(("transformer",))]
  size: Annotated[str, Check(transformer.is_size, transformer.SIZE_WANTED)]
  pooling: Annotated[str, OneOf(transformer.POOLINGS)]

  def __post_init__(self):
    fields.check_instance(self)

  @property
  def num_heads(self) -> int:
    """Attention heads, also of the heads that look at this tower's tokens."""
    return transformer.size(self.size).num_heads

  def build(
    self, vocab_size: int, max_length: int, shared: dict[str, Any]
  ) -> "TextTransformer":
    """The module, with the settings that all towers share."""
    return TextTransformer(
      size=self.size,
      vocab_size=vocab_size,
      max_length=max_length,
      pooling=self.pooling,
      form=transformer.Form(hidden=transformer.size(self.size).hidden),
      **shared,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Published:
  """What the settings of both published architectures have."""

  size: Annotated[str, Check(transformer.is_size, transformer.SIZE_WANTED)]
  activation: Annotated[str, OneOf(tuple(transformer.ACTIVATIONS))]
  epsilon: Annotated[float, Range("(0, 0.1]")]

  def __post_init__(self):
    fields.check_instance(self)

  @property
  def num_heads(self) -> int:
    """Attention heads, also of the heads that look at this tower's tokens."""
    return transformer.size(self.size).num_heads

  def form(self, **changes) -> transformer.Form:
    """Of the blocks."""
    return transformer.Form(
      hidden=transformer.size(self.size).hidden,
      activation=self.activation,
      epsilon=self.epsilon,
      **changes,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertSettings(_Published):
  """`config.model.text` where its name is `bert`."""

  name: Annotated[str, OneOf(("bert",))]
  pooling: Annotated[str, OneOf(("cls", "mean", "map"))]

  def build(
    self, vocab_size: int, max_length: int, shared: dict[str, Any]
  ) -> "TextTransformer":
    """The module, with the settings that all towers share."""
    return TextTransformer(
      size=self.size,
      vocab_size=vocab_size,
      max_length=max_length,
      pooling=self.pooling,
      form=self.form(post_norm=True),
      **shared,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextSettings(_Published):
  """`config.model.text` where its name is `clip_text`."""

  name: Annotated[str, OneOf(("clip_text",))]

  def build(
    self, vocab_size: int, max_length: int, shared: dict[str, Any]
  ) -> "TextTransformer":
    """The module, with the settings that all towers share."""
    return TextTransformer(
      size=self.size,
      vocab_size=vocab_size,
      max_length=max_length,
      pooling="last",
      causal=True,
      form=self.form(),
      **shared,
    )


class TextTransformer(nn.Module):
  """Token ids to tokens and one feature.

  Attributes:
    size: of `transformer.size`.
    vocab_size: of the tokenizer.
    max_length: L, the length of the texts.
    pooling: of `transformer.Pooling`.
    form: of the blocks; where they are post-normalised, so are the embeddings.
    causal: each token sees only itself and those before it.
  """

  size: str
  vocab_size: int
  max_length: int
  pooling: str = "map"
  form: transformer.Form = transformer.Form()
  causal: bool = False
  dropout: float = 0.0
  dtype: Any = jnp.float32
  scan: bool = True
  remat: str = "none"

  def setup(self):
    size = transformer.size(self.size)
    embedding = nn.initializers.normal(0.02)
    self.embedding = nn.Embed(
      self.vocab_size, size.width, embedding_init=embedding
    )
    self.position = self.param(
      "position", embedding, (self.max_length, size.width)
    )
    self.transformer = transformer.Transformer(
      depth=size.depth,
      num_heads=size.num_heads,
      dropout=self.dropout,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
      form=self.form,
    )
    self.pool = transformer.Pooling(
      self.pooling, size.num_heads, self.dtype, self.form
    )
    if self.form.post_norm:
      self.embedding_norm = transformer.norm(None, self.form)

  def embed(self, ids: jax.Array) -> jax.Array:
    """int32 [B, L] -> float32 [B, L, width]: token plus position embeddings.

    Rows and their gradients are float32: many tokens add to one row.
    """
    rows = jnp.take(looked_up(self.embedding.embedding), spread(ids), axis=0)
    x = spread(rows + self.position)
    return spread(self.embedding_norm(x)) if self.form.post_norm else x

  def tokens(
    self, ids: jax.Array, mask: jax.Array, *, deterministic: bool = True
  ) -> jax.Array:
    """int32 [B, L], bool [B, L] -> float32 [B, L, width]."""
    attend = mask[:, None, None, :]
    if self.causal:
      attend = attend & nn.make_causal_mask(mask, dtype=bool)
    return self.transformer(
      self.embed(ids), mask=attend, deterministic=deterministic
    )

  def vocabulary_logits(self, tokens: jax.Array) -> jax.Array:
    """[B, L, width] -> [B, L, vocab_size] with the tied embedding."""
    table = gathered(self.embedding.embedding.astype(self.dtype))
    return spread(jnp.dot(tokens.astype(self.dtype), table.T))

  def __call__(
    self, ids: jax.Array, mask: jax.Array, *, deterministic: bool = True
  ) -> tuple[jax.Array, jax.Array]:
    """The feature, float32 [B, width], and the tokens [B, L, width].

    Args:
      ids: int32 [B, L], L = max_length.
      mask: bool [B, L], True where a token is real.
      deterministic: no dropout.
    """
    if ids.shape[1] != self.max_length:
      raise ValueError(
        f"texts are {ids.shape[1]} tokens long, the model's {self.max_length}"
      )
    tokens = self.tokens(ids, mask, deterministic=deterministic)
    return self.pool(tokens, mask), tokens

  def with_hidden(
    self,
    ids: jax.Array,
    hidden: jax.Array,
    mask: jax.Array,
    *,
    deterministic: bool = True,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Feature and tokens of texts; and the tokens of them with words hidden.

    In one pass, so that the weights are gathered, and their gradients reduced,
    once.

    Args:
      ids: int32 [B, L], L = max_length.
      hidden: int32 [B, L], the same with some replaced.
      mask: bool [B, L], True where a token is real.
      deterministic: no dropout.
    """
    B, L = ids.shape
    both = jnp.stack([ids, hidden], axis=1).reshape(2 * B, L)
    tokens = self.tokens(
      both, jnp.repeat(mask, 2, axis=0), deterministic=deterministic
    ).reshape(B, 2, L, -1)
    plain = spread(tokens[:, 0])
    return self.pool(plain, mask), plain, spread(tokens[:, 1])
