"""Cali-NCE on WebVid-2M's 2.5 million stock clips: ViT-B, 16 frames.

    python -m calince_jax.train --config=configs/webvid.py \
      --config.data.datasets=DATA --workdir=gs://BUCKET/webvid

DATA: `prepare --short_side=256 --frame_rate=2`. 16 epochs of 4,096 pairs; the
towers and heads have 259 million parameters.

Pod: v5e:16x16, 16 clips on each chip. Planned, not measured, by

    python -m calince_jax.plan --config=configs/webvid.py --topology=v5e:16x16

4.3 of 16 GiB of a chip; a step takes 0.13 s or more, so the run 21 minutes or
more.
"""

import ml_collections

from configs import cali_nce

POD = ("v5e:16x16", 1)  # topology of a slice, number of slices


def get_config() -> ml_collections.ConfigDict:
  """B towers on 16 frames of 224 pixels."""
  config = cali_nce.get_config()
  config.batch_size = 4096
  config.total_steps = 10_000
  config.checkpoint_every = 500
  config.evaluate_every = 1_000
  config.data.num_frames = 16
  config.model.video.size = "B"
  config.model.text.size = "B"
  config.model.embedding_dim = 512
  config.model.remat = "full"
  return config
