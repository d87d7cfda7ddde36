"""The towers that benchmarks/step.py times: InfoNCE, small enough for a CPU.

python -m benchmarks.step --config=configs/step_time.py
"""

import ml_collections

from configs import infonce


def get_config() -> ml_collections.ConfigDict:
  """A ViT-S and a text-Ti on 8 frames of 64 pixels, in float32."""
  config = infonce.get_config()
  config.batch_size = 8
  config.data.image_size = 64
  config.model.video.tubelet = (2, 8)
  config.model.text.size = "Ti"
  config.model.dtype = "float32"
  # A scan copies what each block keeps for the backward pass.
  config.model.scan = False
  return config
