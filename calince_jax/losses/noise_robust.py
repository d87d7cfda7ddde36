"""Published losses for contrastive learning from noisy pairs, for comparison.

    S_ij  = logit_scale * <video_i, text_j>,      d_i = S_ii
    log Z = logsumexp_j S_ij  (video -> text)  or  logsumexp_j S_ji
    log p = d - log Z,        InfoNCE = -log p

Each function computes one loss for each pair, float32 [N] in nats, the mean of
both directions, from S float32 [N, N]. `weighted_mean` of calibrated_nce.py
makes them the batch's loss. Under `jax.jit` the N pairs are the global batch.
A loss that needs only d and log Z is also there as `NAME_from_...`, for S in
tiles (tiled_nce.py). Formulas, sources and tests: docs/method.md
"""

import math

import jax
import jax.numpy as jnp

from calince_jax.losses.moments import SMALLEST_STD

MIL_NCE_VARIANTS = ("paper", "released")


def rince(S: jax.Array, *, q: float, lam: float) -> jax.Array:
  """-exp(q d)/q + (lam Z)^q / q, float32 [N], of any sign.

  q -> 0 gives InfoNCE + log lam; q = 1 the symmetric loss
  -(1 - lam) exp(d) + lam sum_{j != i} exp S_ij, which is robust to noise.
  Robust InfoNCE (Chuang et al., CVPR 2022, "Robust Contrastive Learning
  against Noisy Views").

  Args:
    S: float32 [N, N]; finite in float32 while q max(S) < 88.
    q: in (0, 1].
    lam: > 0, the weight of Z.
  """
  return rince_from_log_z(jnp.diagonal(S), _log_Z(S), q=q, lam=lam)


def rince_from_log_z(
  d: jax.Array, log_Z: jax.Array, *, q: float, lam: float
) -> jax.Array:
  """`rince` from d, float32 [N], and log Z, float32 [2, N]."""
  positive = q * d  # [N]
  everything = q * (math.log(lam) + log_Z)  # [2, N]
  # The ones of the two expm1 cancel; exp would lose the digits below them.
  return ((jnp.expm1(everything) - jnp.expm1(positive)) / q).mean(axis=0)


def gce(S: jax.Array, *, q: float) -> jax.Array:
  """(1 - p^q) / q, float32 [N] in [0, 1/q]; q -> 0 gives InfoNCE.

  The generalised cross entropy (Zhang and Sabuncu, NeurIPS 2018); the classes
  of a video are the batch's texts, and vice versa. q in (0, 1]; q = 1 is the
  robust 1 - p.
  """
  return gce_from_log_p(_log_p(S), q=q)


def gce_from_log_p(log_p: jax.Array, *, q: float) -> jax.Array:
  """`gce` from log p, float32 [2, N]."""
  return (-jnp.expm1(q * log_p) / q).mean(axis=0)


def mixture(S: jax.Array, *, pi: float) -> jax.Array:
  """-log(pi p + (1 - pi)/N), float32 [N]; pi = 1 gives InfoNCE.

  A pair is matched with probability pi, else its text is any of the N. The
  gradient is InfoNCE's times the responsibility pi p / (pi p + (1 - pi)/N).
  The finite mixture with a uniform component: a textbook form.

  Args:
    S: float32 [N, N].
    pi: in (0, 1], the share of matched pairs.
  """
  return mixture_from_log_p(_log_p(S), pi=pi)


def mixture_from_log_p(log_p: jax.Array, *, pi: float) -> jax.Array:
  """`mixture` from log p, float32 [2, N]."""
  matched = math.log(pi) + log_p  # [2, N]
  # -inf where pi = 1
  mismatched = jnp.log1p(-pi) - math.log(log_p.shape[1])
  return -jnp.logaddexp(matched, mismatched).mean(axis=0)


def albef(S: jax.Array, S_momentum: jax.Array, *, alpha: float) -> jax.Array:
  """-sum_j [alpha softmax(S_momentum) + (1 - alpha) I]_ij log p_ij.

  float32 [N], >= 0; alpha = 0 gives InfoNCE. Momentum distillation (ALBEF, Li
  et al., NeurIPS 2021).

  Args:
    S: float32 [N, N].
    S_momentum: float32 [N, N], of the averaged model; no gradient flows into
      it.
    alpha: in [0, 1].
  """
  return _soft_cross_entropy(S, S_momentum, alpha)


def norton(S: jax.Array, *, beta: float, iterations: int) -> jax.Array:
  """-sum_j [(1 - beta) I + beta Sinkhorn(S)]_ij log p_ij.

  float32 [N], >= 0; beta = 0 gives InfoNCE. No gradient flows into the plan;
  for text -> video its columns are normalised once more. Optimal transport
  within the batch detects faulty negatives (the clip-level loss of Norton, Lin
  et al., ICLR 2024).

  Args:
    S: float32 [N, N].
    beta: in [0, 1].
    iterations: of `sinkhorn`, >= 0; 0 gives the softmax.
  """
  log_plan = sinkhorn(jax.lax.stop_gradient(S), iterations)
  return _soft_cross_entropy(S, log_plan, beta)


def sinkhorn(S: jax.Array, iterations: int) -> jax.Array:
  """log of the plan diag(exp u) exp(S) diag(exp v), float32 [N, N].

  Its rows sum to 1, and so do its columns once it has converged. It is N times
  the entropic transport plan between uniform marginals with cost -S and
  regularisation 1 (Sinkhorn, 1964; Cuturi, NeurIPS 2013).

  Args:
    S: float32 [N, N].
    iterations: how often rows and columns are normalised, before the rows are
      normalised once more.
  """

  def normalise(_, v):
    u = -jax.nn.logsumexp(S + v, axis=1)  # [N]  the rows sum to 1
    return -jax.nn.logsumexp(S + u[:, None], axis=0)  # [N]  the columns do

  v = jnp.zeros_like(S, shape=S.shape[1:])
  v = jax.lax.fori_loop(0, iterations, normalise, v)
  return jax.nn.log_softmax(S + v, axis=1)


def siglip(S: jax.Array) -> jax.Array:
  """1/2 sum_j -[log sigmoid(y_ij S_ij) + log sigmoid(y_ji S_ji)], float32 [N].

  y is 1 on the diagonal and -1 elsewhere, so the mean over i is
  -(1/N) sum_ij log sigmoid(y_ij S_ij). Here S = t cos + b: it includes the
  bias b. SigLIP (Zhai et al., ICCV 2023).
  """
  y = 2.0 * jnp.eye(S.shape[0]) - 1.0
  nats = jax.nn.softplus(-y * S)  # [N, N]
  return 0.5 * (nats.sum(axis=1) + nats.sum(axis=0))


def mil_nce(S: jax.Array, positives: jax.Array, *, variant: str) -> jax.Array:
  """-log [ sum_P e^S / (c sum_P e^S + sum_N e^S) ], float32 [N].

  P and N are the entries of row i and column i whose text belongs to the video,
  and the others; the entry (i, i) counts once. `paper` has c = 1. `released`,
  like the published code, counts the positives in the row and in the column of
  the denominator: c = 2, so that the loss never falls below log 2. The sums
  cover both directions. MIL-NCE (Miech et al., CVPR 2020).

  Args:
    S: float32 [N, N].
    positives: bool [N, N], True where text j belongs to video i; the diagonal
      is True.
    variant: one of MIL_NCE_VARIANTS.

  Raises:
    ValueError: unknown variant.
  """
  if variant not in MIL_NCE_VARIANTS:
    raise ValueError(
      f"variant={variant!r} is unknown; choose one of {list(MIL_NCE_VARIANTS)}"
    )
  c = {"paper": 1.0, "released": 2.0}[variant]
  others = ~jnp.eye(S.shape[0], dtype=bool)  # the column is without (i, i)
  S_both = jnp.concatenate([S, S.T], axis=1)  # [N, 2N]  row i, then column i
  P = jnp.concatenate([positives, positives.T & others], axis=1)
  N = jnp.concatenate([~positives, ~positives.T], axis=1)
  log_P = jax.nn.logsumexp(S_both, axis=1, where=P)
  return jax.nn.logsumexp(S_both, axis=1, b=c * P + N) - log_P


def robust_xid_weights(
  cosine: jax.Array,
  mean: jax.Array | float,
  std: jax.Array | float,
  *,
  delta: float,
  kappa: float,
  w_min: float,
) -> jax.Array:
  """w_min + (1 - w_min) Phi((cos - (mu + delta sigma)) / (sqrt(kappa) sigma)).

  Phi is the normal distribution function. Robust cross-modal instance
  discrimination (Morgado, Misra, Vasconcelos, CVPR 2021).

  Args:
    cosine: float32 [N], of each given pair; no gradient flows into it.
    mean: mu, [], of the given pairs' cosines; see moments.py.
    std: sigma, [], >= 0, likewise; at least 1e-6 is used.
    delta: shift of the threshold, in sigmas.
    kappa: > 0, the softness.
    w_min: in [0, 1], the smallest weight.

  Returns:
    float32 [N] in [w_min, 1].
  """
  cosine, mu, sigma = jax.lax.stop_gradient((cosine, mean, std))
  sigma = jnp.maximum(sigma, SMALLEST_STD)
  z = (cosine - (mu + delta * sigma)) / (math.sqrt(kappa) * sigma)
  return w_min + (1.0 - w_min) * jax.scipy.stats.norm.cdf(z)


def _log_Z(S):
  """[2, N]: video i against all texts, then text i against all videos."""
  return jnp.stack([jax.nn.logsumexp(S, axis=axis) for axis in (1, 0)])


def _log_p(S):
  """log p of the given pairs in both directions, [2, N], at most 0."""
  log_p = [jax.nn.log_softmax(S, axis=axis) for axis in (1, 0)]
  return jnp.stack([jnp.diagonal(direction) for direction in log_p])


def _soft_cross_entropy(S, target_logits, share):
  """Cross entropy to share * softmax(target_logits) + (1 - share) I, [N]."""
  target_logits = jax.lax.stop_gradient(target_logits)
  identity = jnp.eye(S.shape[0])

  def direction(axis):
    target = share * jax.nn.softmax(target_logits, axis=axis)
    target += (1.0 - share) * identity
    return -(target * jax.nn.log_softmax(S, axis=axis)).sum(axis=axis)

  return 0.5 * (direction(1) + direction(0))
