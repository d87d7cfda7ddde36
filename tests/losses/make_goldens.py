"""Writes goldens/noise_robust.json: what other packages make of one batch.

Run by hand, in an environment of its own; the tests only read the file:

    pip install torch numpy POT keras
    pip install --no-deps open_clip_torch==3.3.0
    KERAS_BACKEND=torch python tests/losses/make_goldens.py
"""

import importlib.util
import json
from importlib.metadata import distribution, version
from pathlib import Path

import keras
import numpy as np
import ot
import torch

N, D = 7, 5
LOGIT_SCALE, LOGIT_BIAS = 10.0, -10.0
GCE_Q = (0.1, 0.7)


def open_clip_losses():
  """open_clip/loss.py by its path: the whole package needs torchvision."""
  path = distribution("open_clip_torch").locate_file("open_clip/loss.py")
  spec = importlib.util.spec_from_file_location("open_clip_loss", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def unit(rng):
  x = rng.normal(size=(N, D))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def gce(S, q):
  """Keras's mean over the rows' and over the columns' softmax, averaged."""
  loss = keras.losses.CategoricalGeneralizedCrossEntropy(q=q)
  both = [
    float(loss(torch.arange(N), torch.softmax(x, dim=1))) for x in (S, S.T)
  ]
  return sum(both) / 2


def main():
  rng = np.random.default_rng(0)
  video, text = unit(rng), unit(rng)
  S = LOGIT_SCALE * video @ text.T
  v, t = torch.from_numpy(video), torch.from_numpy(text)
  open_clip = open_clip_losses()
  uniform = np.full(N, 1 / N)
  plan = ot.sinkhorn(
    uniform,
    uniform,
    -S,
    reg=1.0,
    method="sinkhorn_log",
    numItermax=10000,
    stopThr=1e-13,
  )
  golden = {
    "made_with": {
      name: version(name) for name in ("open_clip_torch", "POT", "keras")
    },
    "video": video.tolist(),
    "text": text.tolist(),
    "logit_scale": LOGIT_SCALE,
    "logit_bias": LOGIT_BIAS,
    "open_clip_clip": float(open_clip.ClipLoss()(v, t, LOGIT_SCALE)),
    "open_clip_siglip": float(
      open_clip.SigLipLoss()(v, t, LOGIT_SCALE, LOGIT_BIAS)
    ),
    "keras_gce": {str(q): gce(torch.from_numpy(S), q) for q in GCE_Q},
    "pot_sinkhorn": (N * plan).tolist(),
  }
  folder = Path(__file__).parent / "goldens"
  folder.mkdir(exist_ok=True)
  path = folder / "noise_robust.json"
  path.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
  main()
