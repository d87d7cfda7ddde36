"""Fine-tunes a trained model to name the class of a clip.

    python -m calince_jax.finetune --from=MODEL --workdir=DIR \
      --config=configs/finetune_recognition.py:full --config.data.datasets=DATA
    python -m calince_jax.evaluate --workdir=DIR --task=classification

full trains the video tower and a linear classifier on its feature; partial the
tower's last two blocks and the classifier; probe the classifier alone. All else
stays as it was.
"""

import ml_collections

from calince_jax.errors import check_choice
from configs import finetune_retrieval

# What stays as it is, an expression over the paths of parameters.
FROZEN = {
  "full": r"^(?!video_encoder/|classifier/)",
  "partial": r"^(?!video_encoder/|classifier/)",
  "probe": r"^(?!classifier/)",
}


def get_config(mode: str = "full") -> ml_collections.ConfigDict:
  """`mode`: full, partial or probe."""
  check_choice("configs/finetune_recognition.py", mode, tuple(FROZEN))
  config = finetune_retrieval.get_config("infonce")
  config.objective.contrastive_weight = 0.0
  config.objective.classification_weight = 1.0
  config.objective.label_smoothing = 0.1
  config.alarms.no_learning_steps = 0  # of the contrastive accuracy
  config.optimizer.frozen = FROZEN[mode]
  config.optimizer.trained_blocks = 2 if mode == "partial" else 0
  # Of large towers; small ones of little training learn nothing at this rate,
  # and want that of pre-training (docs/results.md).
  config.optimizer.learning_rate = 1e-3 if mode == "probe" else 1e-4
  return config
