"""Per-pair contrastive loss, selected by name.

Each is computed from the dense N x N similarities S. Those that need only S_ii
and sums over the rows and columns of S (LOSSES_FROM_SUMS) can be computed in
tiles and bounded memory instead, with the same values: tiled_nce.py.
"""

from typing import Any

import jax
import jax.numpy as jnp

from calince_jax.losses import noise_robust
from calince_jax.losses.calibrated_nce import (
  mask_duplicate_pairs,
  pair_losses,
  similarity,
)
from calince_jax.losses.tiled_nce import Tiling, similarity_sums

# The constants of the losses' papers, except that the temperature is learned.
RINCE = {"q": 0.1, "lam": 0.025}
GCE = {"q": 0.7}
MIXTURE = {"pi": 0.8}
NORTON = {"beta": 0.3, "iterations": 50}
ALBEF_ALPHA = 0.4

LOSSES_FROM_SUMS = ("infonce", "rince", "gce", "mixture", "siglip")
LOSSES = (*LOSSES_FROM_SUMS, "albef", "norton", "mil_nce", "mil_nce_released")


def pair_loss(
  name: str,
  outputs: dict[str, Any],
  pair_index: jax.Array,
  *,
  blend: jax.Array | float,
  mask_duplicates: bool,
  tiling: Tiling | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Each pair's contrastive loss l_i, and its metrics.

  Args:
    name: one of LOSSES.
    outputs: from the model: `video`, `text` float32 [N, D], L2-normalised;
      `logit_scale` []; for `siglip` `logit_bias` []; for `albef`
      `momentum_video`, `momentum_text` [N, D].
    pair_index: int32 [N], the pair at each position of the batch.
    blend: [] in [0, 1], multiplies ALBEF's alpha.
    mask_duplicates: whether duplicate pairs are left out as negatives of each
      other; for LOSSES_FROM_SUMS only.
    tiling: how S is cut into tiles, for LOSSES_FROM_SUMS only; None for the
      dense S.

  Returns:
    l, float32 [N] in nats; and the metrics `in_batch_accuracy`, the share of
    rows and columns in which S_ii is the largest entry, and `infonce`, the
    mean of plain InfoNCE, which is missing for `siglip` in tiles.
  """
  if tiling is None:
    return _dense(name, outputs, pair_index, blend, mask_duplicates)
  return _tiled(name, outputs, pair_index if mask_duplicates else None, tiling)


def _dense(name, outputs, pair_index, blend, mask_duplicates):
  scale = outputs["logit_scale"]
  S = similarity(outputs["video"], outputs["text"], scale)
  if mask_duplicates:
    S = mask_duplicate_pairs(S, pair_index)
  d = jnp.diagonal(S)
  others = jnp.where(jnp.eye(len(S), dtype=bool), -jnp.inf, S)
  metrics = _metrics(d, others.max(axis=1), others.max(axis=0))
  metrics["infonce"] = pair_losses(S).mean()
  if name == "infonce":
    return pair_losses(S), metrics
  if name == "rince":
    return noise_robust.rince(S, **RINCE), metrics
  if name == "gce":
    return noise_robust.gce(S, **GCE), metrics
  if name == "mixture":
    return noise_robust.mixture(S, **MIXTURE), metrics
  if name == "siglip":
    return noise_robust.siglip(S + outputs["logit_bias"]), metrics
  if name == "norton":
    return noise_robust.norton(S, **NORTON), metrics
  if name == "albef":
    M = similarity(outputs["momentum_video"], outputs["momentum_text"], scale)
    return noise_robust.albef(S, M, alpha=ALBEF_ALPHA * blend), metrics
  same = pair_index[:, None] == pair_index[None, :]
  variant = "released" if name == "mil_nce_released" else "paper"
  return noise_robust.mil_nce(S, same, variant=variant), metrics


def _tiled(name, outputs, pair_ids, tiling):
  siglip = name == "siglip"
  sums = similarity_sums(
    outputs["video"],
    outputs["text"],
    outputs["logit_scale"],
    outputs["logit_bias"] if siglip else 0.0,
    pair_ids=pair_ids,
    reduction="softplus" if siglip else "logsumexp",
    tiling=tiling,
  )
  d, others = sums["diagonal"], jnp.stack([sums["rows"], sums["columns"]])
  metrics = _metrics(d, sums["row_max"], sums["column_max"])
  if siglip:
    return jax.nn.softplus(-d) + others.mean(axis=0), metrics
  log_p = -jax.nn.softplus(others - d)  # [2, N]
  infonce = -log_p.mean(axis=0)
  metrics["infonce"] = infonce.mean()
  if name == "infonce":
    return infonce, metrics
  if name == "rince":
    return noise_robust.rince_from_log_z(d, d - log_p, **RINCE), metrics
  if name == "gce":
    return noise_robust.gce_from_log_p(log_p, **GCE), metrics
  return noise_robust.mixture_from_log_p(log_p, **MIXTURE), metrics


def _metrics(d, row_max, column_max):
  hits = (d > row_max).mean() + (d > column_max).mean()
  return {"in_batch_accuracy": hits / 2}
