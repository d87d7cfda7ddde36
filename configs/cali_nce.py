"""Cali-NCE: the three objectives, the contrastive one calibrated.

    python -m calince_jax.train --config=configs/cali_nce.py \
      --config.data.datasets=DATA --workdir=DIR
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  """configs/base.py is Cali-NCE: nothing to change."""
  return base.get_config()
