"""The calibrated NCE, dense: the equation that the project is named after.

    S_ij = logit_scale * <video_i, text_j>
    l_i  = 1/2 [ logsumexp_j S_ij + logsumexp_j S_ji ] - S_ii
    L    = sum_i w_i l_i / sum_i w_i,       w_i = stop_gradient(confidence_i)

Under `jax.jit` the arrays are the global batch, on however many devices, so
`sum_i` is over the global batch. Only the anchor pair is weighted: a text that
does not describe its own video is still a valid negative for other videos.

Source: our reading of the abstract of Cali-NCE (Zhao, Jiao, Xie, Lin, 2023);
l_i is the symmetric InfoNCE of CLIP (Radford et al., 2021). docs/method.md
"""

import jax
import jax.numpy as jnp


def similarity(
  video: jax.Array, text: jax.Array, logit_scale: jax.Array | float
) -> jax.Array:
  """S = logit_scale * video @ text.T, float32 [N, M], from [N, D], [M, D]."""
  video, text = video.astype(jnp.float32), text.astype(jnp.float32)
  S = jnp.matmul(video, text.T, precision=jax.lax.Precision.HIGHEST)
  return logit_scale * S


def mask_duplicate_pairs(S: jax.Array, pair_ids: jax.Array) -> jax.Array:
  """S with -inf where i != j hold the same pair, float32 [N, N].

  A duplicate pair would otherwise be a false negative of itself.

  Args:
    S: float32 [N, N].
    pair_ids: int32 [N], equal where the pair is the same.
  """
  same = pair_ids[:, None] == pair_ids[None, :]
  return jnp.where(same & ~jnp.eye(len(S), dtype=bool), -jnp.inf, S)


def pair_losses(S: jax.Array) -> jax.Array:
  """l_i, the symmetric InfoNCE of each pair: float32 [N] from S [N, N]."""
  rows = jax.nn.logsumexp(S, axis=1)  # [N]  video i against all texts
  columns = jax.nn.logsumexp(S, axis=0)  # [N]  text i against all videos
  return 0.5 * (rows + columns) - jnp.diagonal(S)


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
  """sum_i w_i x_i / sum_i w_i over [N]; 0 where all the weights are 0."""
  total = weights.sum()
  return (weights * values).sum() / jnp.where(total > 0, total, 1.0)


def calibrated_nce(
  video: jax.Array,
  text: jax.Array,
  confidence: jax.Array,
  logit_scale: jax.Array | float,
) -> jax.Array:
  """The calibrated contrastive loss of a batch of pairs.

  Args:
    video: [N, D], L2-normalised video embeddings, any float dtype.
    text: [N, D], L2-normalised text embeddings; text i was given with video i.
    confidence: [N], >= 0: the weight w of each pair. No gradient flows into
      it. Only ratios matter; all 0 gives loss 0 and gradient 0.
    logit_scale: [], > 0, the inverse temperature.

  Returns:
    float32 [], in nats; equal confidences give the plain InfoNCE, ln(N) at
    chance.

  Raises:
    ValueError: the shapes do not agree.
  """
  if video.ndim != 2 or video.shape != text.shape:
    raise ValueError(
      f"video {video.shape} and text {text.shape} must both be [N, D]"
    )
  if confidence.shape != video.shape[:1]:
    raise ValueError(
      f"confidence {confidence.shape} must be [N] = {video.shape[:1]}"
    )
  S = similarity(video, text, logit_scale)
  w = jax.lax.stop_gradient(confidence.astype(jnp.float32))
  return weighted_mean(pair_losses(S), w)
