"""InfoNCE alone: CLIP's objective on video.

    python -m calince_jax.train --config=configs/infonce.py \
      --config.data.datasets=DATA --workdir=DIR
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  """Co-training without correspondence and prediction."""
  config = base.get_config()
  config.objective.confidence = "none"
  config.objective.scorer = "cosine"  # there is no head
  config.model.cross_fit = False
  config.objective.correspondence_weight = 0.0
  config.objective.predictive_weight = 0.0
  return config
