"""Statistics of the training pairs, compared with the known truth."""

from collections.abc import Mapping

import numpy as np

from calince_jax.evals import calibration_metrics

NAMES = ("matched", "alignment_score", "confidence", "weight")


class PairStatistics:
  """Collects the pairs of training steps; see `summary`."""

  def __init__(self):
    """Nothing is collected yet."""
    self._steps: list[Mapping[str, np.ndarray]] = []

  def add(self, pairs: Mapping[str, np.ndarray]) -> None:
    """Adds the pairs of one step, or what `arrays` returned.

    Args:
      pairs: NAMES, each [B]; what the train step returns of the global batch.
        Older checkpoints have `score` for `alignment_score`.
    """
    if "score" in pairs:
      pairs = {**pairs, "alignment_score": pairs["score"]}
    self._steps.append({name: pairs[name] for name in NAMES})

  def arrays(self) -> dict[str, np.ndarray]:
    """NAMES of all pairs since the last `summary`, [n] each; {} if none.

    They are saved with a checkpoint. A resumed run gives them to `add`, and so
    logs what the run without an interruption would have logged.
    """
    return {
      name: np.concatenate([np.asarray(pairs[name]) for pairs in self._steps])
      for name in (NAMES if self._steps else ())
    }

  def summary(self) -> dict[str, float]:
    """Summarises the pairs since the last call, and forgets them.

    Only pairs whose truth is known count: n of them, with weights w.

    Returns:
      `pairs/auc` of the alignment score and `pairs/auc_confidence` of the
      confidence; `pairs/ece` of the confidence; `pairs/noise_rate_true`;
      `pairs/weight_matched` and `pairs/weight_mismatched`, mean weights;
      `pairs/effective_sample_share`, (sum w)^2 / sum w^2 / n. What cannot be
      computed is absent.
    """
    if not self._steps:
      return {}
    matched, alignment_score, confidence, w = self.arrays().values()
    self._steps = []
    known = matched != calibration_metrics.UNKNOWN
    if not known.any():
      return {}
    result = calibration_metrics.truth_metrics(
      matched,
      confidence,
      {"auc": alignment_score, "auc_confidence": confidence},
    )
    truth, w = matched[known] == 1, w[known].astype(np.float64)
    for name, chosen in (("matched", truth), ("mismatched", ~truth)):
      if chosen.any() and np.isfinite(w).all():
        result[f"weight_{name}"] = float(w[chosen].mean())
    square = (w**2).sum()
    if square > 0:
      share = w.sum() ** 2 / square / len(w)
      result["effective_sample_share"] = float(share)
    return {f"pairs/{name}": value for name, value in result.items()}
