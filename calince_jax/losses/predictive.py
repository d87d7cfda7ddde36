"""The predictive-coding losses, one value for each pair.

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
  """The mean cross-entropy of each text's predicted tokens, float32 [N], nats.

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
  """InfoNCE of each prediction against the batch's targets, float32 [N], nats.

  Dense predictive coding (Han, Xie, Zisserman, 2019). No gradient flows into
  the targets.

  Args:
    prediction: [N, D], L2-normalised.
    target: [N, D], L2-normalised.
    logit_scale: the inverse temperature.
  """
  S = similarity(prediction, jax.lax.stop_gradient(target), logit_scale)
  return jax.nn.logsumexp(S, axis=1) - jnp.diagonal(S)


def reduce_prediction(prediction: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Replaces token logits by each pair's loss; leaves latents as they are.

  The loss of predicted tokens does not depend on the rest of the batch, so it
  is computed chunk by chunk, and the large logits need not be stored.

  Args:
    prediction: from the model: `logits`, `targets` and `mask` of tokens, see
      `token_loss`; or the arguments of `latent_loss`.

  Returns:
    `nats`, float32 [N], for tokens; for latents the prediction itself.
  """
  if "logits" not in prediction:
    return prediction
  return {
    "nats": token_loss(
      prediction["logits"], prediction["targets"], prediction["mask"]
    )
  }


def predictive_loss(prediction: dict[str, jax.Array]) -> jax.Array:
  """Each pair's loss, float32 [N] in nats.

  Args:
    prediction: from `reduce_prediction`, of the global batch.
  """
  if "nats" in prediction:
    return prediction["nats"]
  return latent_loss(
    prediction["prediction"], prediction["target"], prediction["logit_scale"]
  )
