"""Cali-NCE on Kinetics-700 with the titles of its videos as captions.

    python -m calince_jax.train --config=configs/kinetics_titles.py \
      --config.data.datasets=DATA --workdir=gs://BUCKET/kinetics_titles

DATA: `prepare --short_side=256 --frame_rate=3` of a manifest whose captions are
the titles and whose labels are the classes. 540,000 clips, 38 epochs of 1,024
pairs; the towers and heads have 259 million parameters.

Pod: v5p:2x2x2, 128 clips on each chip; or 8 GPUs of one machine:

    sbatch --gpus-per-node=8 launch/slurm.sbatch \
      --config=configs/kinetics_titles.py --config.data.datasets=DATA \
      --workdir=/scratch/kinetics_titles

Memory of a chip and time of a step are planned, not measured:

    python -m calince_jax.plan --config=configs/kinetics_titles.py \
      --topology=v5p:2x2x2 --num_pairs=540000
"""

import ml_collections

from configs import cali_nce

POD = ("v5p:2x2x2", 1)  # topology of a slice, number of slices


def get_config() -> ml_collections.ConfigDict:
  """B towers on 16 frames of 224 pixels; crops as a classifier trains on."""
  config = cali_nce.get_config()
  config.batch_size = 1024
  config.total_steps = 20_000
  config.evaluate_every = 1_000
  config.data.num_frames = 16
  config.data.min_crop_area = 0.3
  config.data.flip = "unsided"  # titles seldom name sides
  config.model.video.size = "B"
  config.model.text.size = "B"
  config.model.embedding_dim = 512
  config.model.remat = "full"
  return config
