"""Plain co-training of the three objectives: every pair counts alike.

    python -m calince_jax.train --config=configs/cotrain.py \
      --config.data.datasets=DATA --workdir=DIR
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  """Cali-NCE with all confidences 1."""
  config = base.get_config()
  config.objective.confidence = "none"
  config.model.cross_fit = False  # no weight depends on the score
  return config
