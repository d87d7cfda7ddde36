"""Makes a golden checkpoint: a run folder as this version writes it.

    python tests/goldens/make_checkpoint.py   # checkpoint_vVERSION.tar.xz here

Run it once for each run_folder.FORMAT_VERSION, before the next version comes;
the older files stay, and tests/runtime/checkpoint_test.py resumes from each.

export_v2.tar.xz is the export of checkpoint_v2 by the version that wrote it,
without params/, which `load` does not read; tests/export_test.py loads it.
"""

import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import conftest  # eight devices
import jax
import numpy as np

from calince_jax.data.tokenizer import Vocabulary
from calince_jax.runtime import checkpoint, run_folder, sharding
from calince_jax.training import setup

STEP = 3


def pattern(leaf: np.ndarray) -> np.ndarray:
  """The content of a leaf; it compresses to almost nothing."""
  return (np.arange(leaf.size) % 7).reshape(leaf.shape).astype(leaf.dtype)


def main() -> None:
  """Writes a run folder, and packs it."""
  with tempfile.TemporaryDirectory() as folder:
    data, run = Path(folder) / "data", Path(folder) / "run"
    data.mkdir()
    conftest.write_tiny_dataset(data)
    config = conftest.tiny_config(data).to_dict()
    opened = setup.open_data(config)
    mesh = sharding.make_mesh(jax.devices())
    training = setup.compile_training(
      config, mesh, vocabulary=Vocabulary(80), num_pairs=104
    )
    state = jax.tree.map(
      lambda leaf, place: jax.device_put(pattern(leaf), place),
      training.abstract,
      training.layout,
    )
    state = state.replace(
      step=jax.device_put(np.int32(STEP), sharding.replicated(mesh))
    )
    config["data"]["datasets"] = "data"
    setup.open_run_folder(config, str(run), opened | {"folders": ["data"]})
    with checkpoint.open_checkpoints(str(run)) as manager:
      checkpoint.save(manager, STEP, state, config)
    name = f"checkpoint_v{run_folder.FORMAT_VERSION}.tar.xz"
    with tarfile.open(HERE / name, "w:xz") as archive:
      archive.add(run, ".")
  print(f"wrote {HERE / name}")


if __name__ == "__main__":
  main()
