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
  config.batch_size = 128
  config.total_steps = 400
  config.log_every = 20
  config.checkpoint_every = 200
  config.data.cache = True
  config.data.image_size = 32
  config.data.text_length = 32
  config.data.min_crop_area = 1.0
  config.model.video.size = "mu"
  config.model.text.size = "mu"
  config.model.video.temporal_depth = 1
  config.model.video.tubelet = (2, 8)
  config.model.scan = False  # one block: faster unrolled on a CPU
  config.model.embedding_dim = 128
  config.model.dtype = "float32"
  config.model.predictive_depth = 1
  config.optimizer.learning_rate = 2e-3
  config.optimizer.ema_decay = 0.98
  return config
