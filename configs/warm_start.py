"""Cali-NCE with the towers that published weights are for.

    python -m calince_jax.train --config=configs/warm_start.py:frame_vit,bert

names a video and a text tower; base.py has their settings.
"""

import ml_collections

from configs import base


def get_config(towers: str = "frame_vit,bert") -> ml_collections.ConfigDict:
  """`towers`: names of a video and a text tower, separated by a comma."""
  config = base.get_config()
  video, text = towers.split(",")
  config.model.video = base.OTHER_VIDEO_TOWERS[video]()
  config.model.text = base.OTHER_TEXT_TOWERS[text]()
  return config.lock()
