"""l_i of the kind that is named, from the N x N similarities or in tiles.

Where S is needed only through S_ii and the sums over its rows and columns
(OF_SUMS), tiled_nce.py gives them in bounded memory; the numbers are the same.
"""

from typing import Any

import jax
import jax.numpy as jnp

from calince_jax.losses import noise_robust
from calince_jax.losses.calibrated_nce import (
  leave_out_repeats,
  pair_losses,
  similarity,
)
from calince_jax.losses.tiled_nce import Tiling, similarity_sums

# The constants are those of the losses' papers; temperatures are learned.
RINCE = {"q": 0.1, "lam": 0.025}
GCE = {"q": 0.7}
MIXTURE = {"pi": 0.8}
NORTON = {"beta": 0.3, "iterations": 50}
ALBEF_ALPHA = 0.4

OF_SUMS = ("infonce", "rince", "gce", "mixture", "siglip")
LOSSES = (*OF_SUMS, "albef", "norton", "mil_nce", "mil_nce_released")


def pair_losses_of(
  kind: str,
  outputs: dict[str, Any],
  pair_index: jax.Array,
  *,
  blend: jax.Array | float,
  mask_repeats: bool,
  tiling: Tiling | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Each pair's contrastive loss, and what is to be watched of it.

  Args:
    kind: one of LOSSES.
    outputs: of the model: `video`, `text` float32 [N, D], L2-normalised;
      `logit_scale` []; `logit_bias` [] of `siglip`; `momentum_video`,
      `momentum_text` [N, D] of `albef`.
    pair_index: int32 [N], which pair stands where.
    blend: [] in [0, 1], how much of ALBEF's alpha counts already.
    mask_repeats: a pair that stands in the batch twice is no negative of
      itself; of OF_SUMS alone.
    tiling: None for the dense N x N; else one of OF_SUMS in tiles.

  Returns:
    float32 [N]; and the metrics `in_batch_accuracy`, how often S_ii is above
    all else in its row and in its column, and `infonce`, the mean of plain
    InfoNCE, which tiles of `siglip` do not give.
  """
  if tiling is None:
    return _dense(kind, outputs, pair_index, blend, mask_repeats)
  return _tiled(kind, outputs, pair_index if mask_repeats else None, tiling)


def _dense(kind, outputs, pair_index, blend, mask_repeats):
  scale = outputs["logit_scale"]
  S = similarity(outputs["video"], outputs["text"], scale)
  if mask_repeats:
    S = leave_out_repeats(S, pair_index)
  d = jnp.diagonal(S)
  others = jnp.where(jnp.eye(len(S), dtype=bool), -jnp.inf, S)
  metrics = _metrics(d, others.max(axis=1), others.max(axis=0))
  metrics["infonce"] = pair_losses(S).mean()
  if kind == "infonce":
    return pair_losses(S), metrics
  if kind == "rince":
    return noise_robust.rince(S, **RINCE), metrics
  if kind == "gce":
    return noise_robust.gce(S, **GCE), metrics
  if kind == "mixture":
    return noise_robust.mixture(S, **MIXTURE), metrics
  if kind == "siglip":
    return noise_robust.siglip(S + outputs["logit_bias"]), metrics
  if kind == "norton":
    return noise_robust.norton(S, **NORTON), metrics
  if kind == "albef":
    M = similarity(outputs["momentum_video"], outputs["momentum_text"], scale)
    return noise_robust.albef(S, M, alpha=ALBEF_ALPHA * blend), metrics
  same = pair_index[:, None] == pair_index[None, :]
  variant = "released" if kind == "mil_nce_released" else "paper"
  return noise_robust.mil_nce(S, same, variant=variant), metrics


def _tiled(kind, outputs, pair_ids, tiling):
  siglip = kind == "siglip"
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
  if kind == "infonce":
    return infonce, metrics
  if kind == "rince":
    return noise_robust.rince_of(d, d - log_p, **RINCE), metrics
  if kind == "gce":
    return noise_robust.gce_of(log_p, **GCE), metrics
  return noise_robust.mixture_of(log_p, **MIXTURE), metrics


def _metrics(d, row_max, column_max):
  right = (d > row_max).mean() + (d > column_max).mean()
  return {"in_batch_accuracy": right / 2}
