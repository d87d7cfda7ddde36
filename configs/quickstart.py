"""Cali-NCE in minutes on two CPU cores: what launch/quickstart.sh trains.

    bash launch/quickstart.sh

`--config=configs/quickstart.py:infonce` and `:cotrain` are the other methods
with the same encoders, batch and steps.
"""

import importlib

import ml_collections


def get_config(method: str = "cali_nce") -> ml_collections.ConfigDict:
  """A small model on the synthetic corpus; `method` names another config."""
  config = importlib.import_module(f"configs.{method}").get_config()
  config.batch_size = 64
  config.total_steps = 800
  config.log_every = 20
  config.checkpoint_every = 200
  config.data.image_size = 64
  config.data.text_length = 40
  config.data.min_crop_area = 0.8
  config.model.video.size = "nano"
  config.model.text.size = "nano"
  config.model.video.temporal_depth = 2
  config.model.scan = False  # two blocks: faster unrolled on a CPU
  config.model.embedding_dim = 128
  config.model.dtype = "float32"
  config.model.predictive_depth = 1
  config.optimizer.ema_decay = 0.99
  return config
