"""Predictive coding: one loss for each pair, whatever is predicted.

masked_text   -E log p(t_masked | t_visible, v)
caption       -E_n log p(t_n | t_<n, v)
latent        -log softmax_j( logit_scale <prediction_i, target_j> )_i
"""

import jax
import jax.numpy as jnp

from calince_jax.losses.calibrated_nce import similarity


def token_loss(
  logits: jax.Array, targets: jax.Array, mask: jax.Array
) -> jax.Array:
  """The mean cross-entropy of each text's predicted tokens, float32 [N].

  Args:
    logits: [N, L, vocabulary], any float dtype.
    targets: int32 [N, L].
    mask: bool [N, L], True where the token is to be predicted; a text without
      any counts 0.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  nats = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
  mask = mask.astype(jnp.float32)
  return (nats * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1.0)


def latent_loss(
  prediction: jax.Array, target: jax.Array, logit_scale: float
) -> jax.Array:
  """InfoNCE of each prediction against the batch's targets, float32 [N].

  Dense predictive coding (Han, Xie, Zisserman, 2019). The targets take no
  gradient.

  Args:
    prediction: [N, D], L2-normalised.
    target: [N, D], L2-normalised.
    logit_scale: the inverse temperature.
  """
  S = similarity(prediction, jax.lax.stop_gradient(target), logit_scale)
  return jax.nn.logsumexp(S, axis=1) - jnp.diagonal(S)


def summarise(prediction: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """What `predictive_loss` needs of a prediction, without its logits.

  The nats of predicted tokens do not depend on the rest of the batch, so they
  may be had where a part of the batch is.

  Args:
    prediction: of the model: `logits`, `targets` and `mask` of tokens, see
      `token_loss`; or what `latent_loss` takes.

  Returns:
    `nats`, float32 [N], of tokens; the prediction itself of latents.
  """
  if "logits" not in prediction:
    return prediction
  return {
    "nats": token_loss(
      prediction["logits"], prediction["targets"], prediction["mask"]
    )
  }


def predictive_loss(prediction: dict[str, jax.Array]) -> jax.Array:
  """float32 [N] from what `summarise` returned, of the whole batch."""
  if "nats" in prediction:
    return prediction["nats"]
  return latent_loss(
    prediction["prediction"], prediction["target"], prediction["logit_scale"]
  )
