"""Cali-NCE on WebVid-10M: ViT-L, 16 frames, a large batch.

    python -m calince_jax.train --config=configs/webvid_large.py \
      --config.data.datasets=DATA --workdir=gs://BUCKET/webvid_large

DATA: `prepare --short_side=256 --frame_rate=2`. 15 epochs of 8,192 pairs; the
towers and heads have 751 million parameters. The batch is encoded in
two chunks.

Pod: v5p:4x4x4, 128 clips on each chip. Memory of a chip and time of a step are
planned, not measured:

    python -m calince_jax.plan --config=configs/webvid_large.py \
      --topology=v5p:4x4x4
"""

import ml_collections

from configs import webvid

POD = ("v5p:4x4x4", 1)  # topology of a slice, number of slices


def get_config() -> ml_collections.ConfigDict:
  """configs/webvid.py with L towers, and twice the batch."""
  config = webvid.get_config()
  config.batch_size = 8192
  config.grad_cache_chunks = 2
  config.total_steps = 20_000
  config.model.video.size = "L"
  config.model.text.size = "L"
  config.model.embedding_dim = 768
  config.optimizer.learning_rate = 5e-4  # half of B's, as in CLIP's larger ViTs
  return config
