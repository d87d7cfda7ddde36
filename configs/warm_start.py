"""Cali-NCE from published weights: towers are those of the folders named.

    python -m calince_jax.train --workdir=run \\
      --config=configs/warm_start.py:video=DIR,text=DIR \\
      --config.data.datasets=data

A folder is one of transformers: ViT, CLIP, SigLIP or DINOv2 for video; BERT,
DistilBERT, MiniLM or CLIP for text; or an export; docs/towers.md says what is
done with it. Where one is left out, that tower is a ViT-B/16 on each frame or
BERT-base, from scratch.
"""

import ml_collections

from calince_jax.errors import UserError
from calince_jax.warm_start.architectures import tower_settings
from configs import base

TOWERS = {"video": base.OTHER_VIDEO_TOWERS, "text": base.OTHER_TEXT_TOWERS}


def get_config(folders: str = "") -> ml_collections.ConfigDict:
  """`folders`: video=DIR, text=DIR or both, separated by a comma."""
  config = base.get_config()
  config.model.video, config.model.text = base.frame_vit(), base.bert()
  for part in filter(None, folders.split(",")):
    kind, _, folder = part.partition("=")
    if kind not in TOWERS or not folder:
      raise UserError(
        f"configs/warm_start.py:{folders}: {part!r} is neither video=DIR nor"
        " text=DIR"
      )
    settings = tower_settings(folder, kind)
    name, own = settings["name"], base.get_config().model[kind]
    tower = own if name == own.name else TOWERS[kind][name]()
    tower.update(settings)
    config.model[kind] = tower
    config.init[kind] = folder
  if config.model.text.name == "clip_text":
    config.model.predictive_task = "caption"  # its tokenizer has no mask token
  # Weights that are good already are changed with care; blocks of time are not.
  config.optimizer.learning_rate = 1e-4
  config.optimizer.layer_decay = 0.75
  config.optimizer.multipliers = ((r"_encoder/(?!tempor|time)", 0.1),)
  return config.lock()
