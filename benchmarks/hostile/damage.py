"""Damages checkpoints and exports, and checks that each damage is seen.

    python -m benchmarks.hostile.damage [--out=runs/damage] [--count=200]

A tiny state is saved as two checkpoints, and a tiny model exported. Then bits
are flipped, files cut, exchanged, removed, replaced by what is no file, or put
there from elsewhere. Whatever is opened is either refused in one message, or
the same to the last bit; and from the checkpoint before training goes on.
OUT/damage.md is a table of it; the exit status is 1 where it is not so.
"""

import collections
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.hostile.settings import attempt, is_fault
from calince_jax import cli
from calince_jax.runtime import checkpoint

SECONDS = 60  # that opening may take


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("out", "runs/damage", "folder to write")
  flags.DEFINE_integer("count", 200, "damages of checkpoints and of exports", 1)
  flags.DEFINE_integer("seed", 0, "of the damages", 0)


# ------------------------------------------------------------ damages


def files_of(folder: Path) -> list[Path]:
  """All files, in one order."""
  return sorted(p for p in folder.rglob("*") if p.is_file())


def flip(folder: Path, rng: np.random.Generator) -> str:
  """One bit of one file that is not empty."""
  files = [path for path in files_of(folder) if path.stat().st_size]
  path = files[rng.integers(len(files))]
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data))] ^= 1 << rng.integers(8)
  path.write_bytes(data)
  return str(path.relative_to(folder))


def flip_in_the_largest(folder: Path, rng: np.random.Generator) -> str:
  """One bit of the numbers."""
  path = max(files_of(folder), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data))] ^= 1 << rng.integers(8)
  path.write_bytes(data)
  return str(path.relative_to(folder))


def cut(folder: Path, rng: np.random.Generator) -> str:
  """The end of a file is missing, or all of it."""
  path = choose(folder, rng)
  os.truncate(path, int(rng.integers(max(path.stat().st_size, 1))))
  return str(path.relative_to(folder))


def remove(folder: Path, rng: np.random.Generator) -> str:
  """A file, or one of the folders in it."""
  inner = sorted(p for p in folder.rglob("*") if p.is_dir())
  if inner and rng.random() < 0.3:
    path = inner[rng.integers(len(inner))]
    shutil.rmtree(path)
  else:
    path = choose(folder, rng)
    path.unlink()
  return str(path.relative_to(folder))


def exchange(folder: Path, rng: np.random.Generator) -> str:
  """Two files have each other's names."""
  one, two = choose(folder, rng), choose(folder, rng)
  other = one.read_bytes()
  one.write_bytes(two.read_bytes())
  two.write_bytes(other)
  return f"{one.relative_to(folder)}, {two.relative_to(folder)}"


def replace(folder: Path, rng: np.random.Generator) -> str:
  """A folder, a pipe, a device or a link stands where a file was."""
  path, how = choose(folder, rng), rng.integers(5)
  path.unlink()
  if how == 0:
    path.mkdir()
  elif how == 1:
    os.mkfifo(path)
  else:
    path.symlink_to(("nowhere", "/dev/zero", "/dev/null")[how - 2])
  return str(path.relative_to(folder))


def foreign(folder: Path, rng: np.random.Generator) -> str:
  """A file that nobody saved."""
  inner = [folder, *sorted(p for p in folder.rglob("*") if p.is_dir())]
  names = (".DS_Store", "notes.txt", "manifest.ocdbt~", "0", "_METADATA (1)")
  path = inner[rng.integers(len(inner))] / names[rng.integers(len(names))]
  if path.exists():
    return ""
  path.write_bytes(rng.bytes(100))
  return str(path.relative_to(folder))


def overwrite(folder: Path, rng: np.random.Generator) -> str:
  """A block of zeros, or of noise, as a disk may give it."""
  path = choose(folder, rng)
  data = bytearray(path.read_bytes())
  place, size = int(rng.integers(len(data) + 1)), int(rng.integers(1, 4096))
  block = bytes(size) if rng.random() < 0.5 else rng.bytes(size)
  data[place : place + size] = block[: len(data) - place]
  path.write_bytes(data)
  return str(path.relative_to(folder))


def choose(folder: Path, rng: np.random.Generator) -> Path:
  """Any file."""
  files = files_of(folder)
  return files[rng.integers(len(files))]


DAMAGES: tuple[Callable[..., str], ...] = (
  flip, flip_in_the_largest, cut, remove, exchange, replace, foreign, overwrite,
)  # fmt: skip


def tried(
  good: Path,
  scratch: Path,
  opened: Callable[[Path], Any],
  rng: np.random.Generator,
  turn: int,
  place: str = ".",
) -> tuple[str, str]:
  """Damages a copy of a folder, and opens it.

  Args:
    good: folder.
    scratch: the copy; it is replaced.
    opened: what opens a copy, and returns a tree of arrays.
    rng: of the damage.
    turn: which of DAMAGES.
    place: in the folder, what is damaged.

  Returns:
    The damage, and "" where what was opened is as it was, the one message where
    it was refused, else what is wrong.
  """
  shutil.rmtree(scratch, ignore_errors=True)
  shutil.copytree(good, scratch)
  damage = DAMAGES[turn % len(DAMAGES)]
  what = f"{damage.__name__} {damage(scratch / place, rng)}"
  found = []
  before = signal.signal(signal.SIGALRM, _too_long)
  signal.alarm(SECONDS)
  try:
    words = attempt(lambda: found.append(opened(scratch)))
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
  if found and not equal(found[0], opened(good)):
    words = "Traceback: silently another state"
  return what, words


def _too_long(*_):
  raise TimeoutError("Traceback: it hangs")


def equal(one: Any, other: Any) -> bool:
  """Whether two trees are the same to the last bit."""
  if jax.tree.structure(one) != jax.tree.structure(other):
    return False
  return all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  )


# ------------------------------------------------------------ a tiny run


def make_run(folder: Path) -> None:
  """A run's folder with the checkpoints 1 and 2 of a small state."""
  with checkpoint.open_checkpoints(str(folder), keep=2) as manager:
    for step in (1, 2):
      checkpoint.save(manager, step, small_state(step), {"seed": 0})


def small_state(step: int) -> dict[str, Any]:
  """A few arrays."""
  numbers = jnp.arange(4096, dtype=jnp.float32) * step / 7
  return {
    "params": {"kernel": numbers.reshape(64, 64), "bias": numbers[:64]},
    "step": jnp.int32(step),
  }


def open_to_resume(folder: Path) -> Any:
  """As train does it."""
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    small_state(1),
  )
  with checkpoint.open_checkpoints(str(folder), keep=2) as manager:
    step = checkpoint.all_steps(manager)[-1]
    return jax.device_get(checkpoint.restore(manager, step, abstract))


def open_parts(folder: Path) -> Any:
  """As evaluate and export do it."""
  return checkpoint.restore_parts(str(folder), None, ["params", "step"])


def go_on(folder: Path, words: str) -> None:
  """What the message says: the damaged one is moved out of the folder.

  Raises:
    RuntimeError: the checkpoint before is not restored, or no other one saved.
  """
  damaged = folder / "checkpoints" / "2"
  if damaged.exists():
    shutil.rmtree(damaged)
  if open_to_resume(folder)["step"] != 1:
    raise RuntimeError(f"no earlier one is restored after: {words}")
  with checkpoint.open_checkpoints(str(folder), keep=2) as manager:
    checkpoint.save(manager, 2, small_state(2), {"seed": 0})
  if open_parts(folder)[0] != 2:
    raise RuntimeError(f"no later one is saved after: {words}")


def main() -> None:
  """Makes run and export, damages them, writes the table."""
  F = flags.FLAGS
  out = Path(F.out).resolve()
  shutil.rmtree(out, ignore_errors=True)
  out.mkdir(parents=True)
  rng = np.random.default_rng(F.seed)
  make_run(out / "run")
  make_export(out / "model")
  said: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
  for turn in range(F.count):
    opened = (open_to_resume, open_parts)[turn // len(DAMAGES) % 2]
    what, words = tried(
      out / "run", out / "damaged", opened, rng, turn, "checkpoints/2"
    )
    if words and not is_fault(words):
      words = words + attempt(go_on, out / "damaged", words)
    said["checkpoint"].append((what, words))
    said["export"].append(
      tried(out / "model", out / "damaged", open_export, rng, turn)
    )
  text = table(said)
  (out / "damage.md").write_text(text + "\n")
  print(text)
  wrong = [one for all_ in said.values() for one in all_ if is_fault(one[1])]
  if wrong:
    print("\n".join(map(str, wrong)))
    sys.exit(1)


def make_export(folder: Path) -> None:
  """An export of a tiny model with random parameters."""
  from calince_jax import config as config_lib
  from calince_jax.data.tokenizer import Tokenizer, train_tokenizer
  from calince_jax.inference import exported
  from calince_jax.inference.model import VideoTextModel
  from calince_jax.losses import density_ratio
  from calince_jax.models.cali_nce import init_params
  from configs import quickstart

  config = quickstart.get_config()
  config.update_from_flattened_dict(TINY)
  words = folder.with_name("tokenizer.model")
  train_tokenizer([f"film number {i}" for i in range(40)], words)
  tokenizer, config = Tokenizer(words), config.to_dict()
  shape = config_lib.model_config(config, tokenizer.vocabulary)
  bins = np.linspace(0, 1, density_ratio.BINS).tolist()
  calibration = {
    "trained": True,
    "scorer": "both",
    "noise_rate": 0.25,
    "head": [0.5, 2.0],
    "cosine": [0.125, 0.5],
    "posterior": bins,
  }
  model = VideoTextModel(
    shape,
    init_params(shape.build(), seed=0),
    tokenizer,
    calibration,
    config_lib.sampling(config),
  )
  exported.write(
    folder, model, tokenizer=words.read_bytes(), card="# A tiny model"
  )


TINY = {
  "data.num_frames": 4,
  "data.image_size": 32,
  "data.text_length": 8,
  "model.video.size": "mu",
  "model.video.temporal_depth": 1,
  "model.text.size": "mu",
  "model.embedding_dim": 16,
  "model.head_hidden": 16,
}


def open_export(folder: Path) -> Any:
  """As a user does: all that the model computes with."""
  import calince_jax

  model = calince_jax.load(folder)
  settings = repr((model.config, model.sampling, model.calibration))
  pieces = model.tokenizer.encode(["film number one", "a dog"], 8)
  return {
    "params": model.params,
    "settings": np.frombuffer(settings.encode(), np.uint8),
    "pieces": pieces,
  }


def table(said: Mapping[str, list[tuple[str, str]]]) -> str:
  """Markdown: a row a kind of damage."""
  lines = ["| what | damage | tried | unharmed | one message | otherwise |"]
  lines.append("|---|---|---|---|---|---|")
  for kind, outcomes in said.items():
    for damage in DAMAGES:
      name = damage.__name__
      mine = [words for what, words in outcomes if what.split()[0] == name]
      bad, good = sum(map(is_fault, mine)), mine.count("")
      refused = len(mine) - bad - good
      label = name.replace("_", " ")
      lines.append(
        f"| {kind} | {label} | {len(mine)} | {good} | {refused} | {bad} |"
      )
  return "\n".join(lines)


if __name__ == "__main__":
  define_flags()
  cli.run(main)
