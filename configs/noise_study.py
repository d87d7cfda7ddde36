"""The claim, tested: known noise, methods x noise rates x seeds x corpora.

    python -m benchmarks.noise_study [--corpus=hard]

makes the corpus, trains and evaluates every run of `sweep()` below, and writes
the evidence to results.md beside the runs. A single run:

    python -m calince_jax.train --config=configs/noise_study.py:cali_nce \
      --config.data.datasets=runs/noise_study/data --config.data.mismatch=0.4 \
      --workdir=DIR

Encoders, batch, steps and the order of the data are the same for all methods;
the seed sets the parameters, the order, and whose captions are exchanged.
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from configs import cali_nce, cotrain, infonce

SHAPES = {
  "style": "plain",
  "num_clips": 4000,
  "num_val": 500,
  "num_test": 1000,
  "max_objects": 2,
  "size": 32,
  "mismatch": 0.0,
  "seed": 0,
}
PREPARE = {
  "frame_rate": 4.0,
  "short_side": 32,
  "jpeg_quality": 95,
  "vocab_size": 200,
}
SIMULATOR = ("av", "absl-py", "etils[epath]")
# What makes a corpus, the packages that it needs in an environment of its own,
# flags of calince_jax.prepare, and overrides of the configuration. The shapes
# are the one that the method was developed on.
CORPORA = {
  "shapes": {
    "module": "calince_jax.data.synthetic",
    "flags": SHAPES,
    "packages": (),
    "prepare": PREPARE,
    "config": {},
  },
  "hard": {
    "module": "calince_jax.data.synthetic",
    "flags": SHAPES | {"style": "hard"},
    "packages": (),
    "prepare": PREPARE | {"vocab_size": 400},
    "config": {"data.text_length": 32},
  },
  "grid": {
    "module": "benchmarks.corpora.grid",
    "flags": {},
    "packages": ("minigrid", *SIMULATOR),
    "prepare": PREPARE | {"short_side": 64, "vocab_size": 400},
    "config": {"data.text_length": 32},
  },
  "metaworld": {
    "module": "benchmarks.corpora.metaworld",
    "flags": {},
    "packages": ("metaworld", "packaging", *SIMULATOR),
    "prepare": PREPARE | {"short_side": 64, "vocab_size": 800},
    "config": {"data.text_length": 32},
  },
}

NOISE_RATES = (0.4, 0.2, 0.6, 0.0)
NUM_SEEDS = 5
# Beside uniform: (kind, noise rate) of captions exchanged in another way.
OTHER_MISMATCHES = (("near", 0.4),)

# Every method but Cali-NCE's own variants is plain co-training with another
# contrastive loss or weighting, or with fewer terms.
# The abstract's plain weightings, on the contrastive term alone.
PLAIN = {"power": 1.0, "weigh_predictive": False}
CALI_NCE = {
  "cali_nce": {},
  "cali_eta_given": {"noise_rate": "mismatch"},
  "cali_score": {"confidence": "score", **PLAIN},
  "cali_posterior": {"confidence": "posterior", **PLAIN},
  "cali_posterior_eta_given": {
    "confidence": "posterior",
    "noise_rate": "mismatch",
    **PLAIN,
  },
  "oracle": {"confidence": "oracle"},
}
CO_TRAINING = {
  "cotrain": {},
  "infonce_correspondence": {"predictive_weight": 0.0},
  "infonce_predictive": {"correspondence_weight": 0.0, "scorer": "cosine"},
  "correspondence_predictive": {"contrastive_weight": 0.0},
  "robust_xid": {"confidence": "robust_xid", "power": 1.0},
  "rince": {"contrastive": "rince"},
  "gce": {"contrastive": "gce"},
  "mixture": {"contrastive": "mixture"},
  "albef": {"contrastive": "albef"},
  "norton": {"contrastive": "norton"},
  "siglip": {"contrastive": "siglip"},
  "mil_nce": {"contrastive": "mil_nce"},
  "mil_nce_released": {"contrastive": "mil_nce_released"},
}
MAIN = ("infonce", "cotrain", "cali_nce", "oracle")
OTHERS = (name for name in (*CALI_NCE, *CO_TRAINING) if name not in MAIN)
METHODS = (*MAIN, *OTHERS)


def get_config(method: str = "cali_nce") -> ml_collections.ConfigDict:
  """The small model of the study, with one of METHODS."""
  if method == "infonce":
    config, choices = infonce.get_config(), {}
  elif method in CALI_NCE:
    config, choices = cali_nce.get_config(), CALI_NCE[method]
  elif method in CO_TRAINING:
    config, choices = cotrain.get_config(), CO_TRAINING[method]
  else:
    raise ValueError(f"method {method!r} is unknown; one of {list(METHODS)}")
  _make_small(config)
  for name, value in choices.items():
    if value == "mismatch":
      value = config.data.get_ref("mismatch")  # the truth, whatever it is
    config.objective[name] = value
  if method == "siglip":  # as its paper begins
    config.model.logit_scale, config.model.logit_bias = 10.0, -10.0
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """All runs, the whole of one noise rate and seed after the other."""
  uniform = ((METHODS, {"data.mismatch": rate}) for rate in NOISE_RATES)
  others = (
    (MAIN, {"data.mismatch": rate, "data.mismatch_kind": kind})
    for kind, rate in OTHER_MISMATCHES
  )
  for methods, noise in (*uniform, *others):
    for seed in range(NUM_SEEDS):
      for method in methods:
        yield {
          "config_argument": method,
          **noise,
          "data.mismatch_seed": seed,
          "seed": seed,
        }


def _make_small(config: ml_collections.ConfigDict) -> None:
  """In place: about a minute a run on one CPU core."""
  config.batch_size = 128
  config.total_steps = 600
  config.log_every = 50
  config.checkpoint_every = 600
  config.evaluate_every = 100
  config.evaluate_splits = "val,test"
  config.data.cache = True
  config.data.num_frames = 4
  config.data.image_size = 32
  config.data.min_crop_area = 1.0
  config.data.text_length = 16
  config.model.video.size = "mu"
  config.model.text.size = "mu"
  config.model.video.temporal_depth = 0
  config.model.video.tubelet = (4, 8)
  config.model.scan = False  # one block: faster unrolled on a CPU
  config.model.embedding_dim = 128
  config.model.dtype = "float32"
  config.model.predictive_depth = 1
  config.optimizer.learning_rate = 2e-3
  config.optimizer.ema_decay = 0.98
