"""Cali-NCE on HowTo100M: narration from speech, half of it not in the picture.

    python -m calince_jax.train --config=configs/howto100m.py \
      --config.data.datasets=DATA --workdir=gs://BUCKET/howto100m

DATA: `prepare --short_side=256 --frame_rate=4` of a manifest with a row for
each sentence and its times. 136 million clips, 2.4 epochs of 4,096 pairs; the
towers and heads have 259 million parameters.

Pod: v6e:16x16, 16 clips on each chip. Memory of a chip and time of a step are
planned, not measured:

    python -m calince_jax.plan --config=configs/howto100m.py \
      --topology=v6e:16x16 --num_pairs=136000000
"""

import ml_collections

from configs import cali_nce

POD = ("v6e:16x16", 1)  # topology of a slice, number of slices


def get_config() -> ml_collections.ConfigDict:
  """B towers on 32 frames of 224 pixels, and longer texts."""
  config = cali_nce.get_config()
  config.batch_size = 4096
  config.total_steps = 80_000
  config.evaluate_every = 2_000
  config.data.num_frames = 32
  config.data.text_length = 64  # speech has more words than a caption
  config.model.video.size = "B"
  config.model.text.size = "B"
  config.model.embedding_dim = 512
  config.model.remat = "full"
  # A sentence comes back with the clips beside it, and from other videos.
  config.objective.mask_duplicates = True
  return config
