"""Fine-tunes a trained model for retrieval on clean or noisy pairs.

    python -m calince_jax.finetune --from=MODEL --workdir=DIR \
      --config=configs/finetune_retrieval.py --config.data.datasets=DATA

`--config=configs/finetune_retrieval.py:infonce` does without calibration; for
captions that are known to be right there is nothing to calibrate.
"""

import importlib

import ml_collections
from ml_collections import config_dict


def get_config(method: str = "cali_nce") -> ml_collections.ConfigDict:
  """`method` names another config: infonce, cotrain."""
  config = importlib.import_module(f"configs.{method}").get_config()
  for name in ("num_frames", "image_size", "text_length"):
    with config.ignore_type():
      config.data[name] = config_dict.placeholder(int)  # None: the model's
  config.total_steps = 5_000
  config.checkpoint_every = 500
  # Weights that are good already are changed with care.
  config.optimizer.learning_rate = 1e-5
  config.optimizer.layer_decay = 0.75
  return config
