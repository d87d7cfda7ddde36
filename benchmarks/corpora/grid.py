"""A corpus of a grid world: missions of BabyAI, carried out by its bot.

    python3 -m venv ENV
    ENV/bin/pip install minigrid av absl-py 'etils[epath]'
    ENV/bin/python -m benchmarks.corpora.grid --out=DIR

writes DIR/clips/*.mp4 and DIR/manifest.csv: 3,400 clips to train on, 500 to
validate and 500 to test. ENV is one to throw away: nothing else of this project
needs these packages.

Small dark pictures of which a few cells differ, 8 moments of a mission of 10 to
22 words such as "put a red ball next to the green key after you open a door".
A hash of the mission decides its split: what is tested was never read before.

* label: what there is to do, such as "go+open": kinds of errands, sorted.
* group: none.
"""

import contextlib
import functools
import hashlib
import io
from pathlib import Path

import gymnasium
import minigrid  # noqa: F401  registers the levels
import numpy as np
from absl import flags
from minigrid.utils.baby_ai_bot import BabyAIBot

from benchmarks.corpora.clips import make_corpus, moments, write_clip
from calince_jax import cli

LEVELS = ("BabyAI-GoToSeqS5R2-v0", "BabyAI-MiniBossLevel-v0")  # 9 x 9 cells
SHORTEST, LONGEST = 10, 22  # words of a mission
MAX_STEPS = 100
ERRANDS = ("go", "open", "pick", "put")  # the verbs of missions
CLIPS = {"train": 34, "val": 5, "test": 5}  # of each unit
NUM_UNITS = 100


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("out", None, "folder to write", required=True)
  flags.DEFINE_integer("tile", 7, "height and width of a cell in pixels", 4)
  flags.DEFINE_integer("num_units", NUM_UNITS, "of 44 clips each", 1)
  flags.DEFINE_integer("num_workers", 2, "processes", 1)


def main() -> None:
  """Makes the corpus."""
  F = flags.FLAGS
  make_corpus(
    F.out,
    {"corpus": "grid", "tile": F.tile, "units": F.num_units, "clips": CLIPS},
    [f"{unit:03d}" for unit in range(F.num_units)],
    functools.partial(make_unit, tile=F.tile),
    F.num_workers,
  )


def make_unit(unit: str, out: Path, *, tile: int) -> list[dict]:
  """Writes the clips of one range of seeds; returns their manifest rows."""
  levels = [gymnasium.make(level).unwrapped for level in LEVELS]
  rows, wanted, seed = [], dict(CLIPS), int(unit) * 1_000_000
  while any(wanted.values()):
    seed += 1
    level = levels[seed % len(levels)]
    with contextlib.redirect_stdout(io.StringIO()):  # layouts it rejects
      level.reset(seed=seed)
    mission = level.mission
    split = split_of(mission)
    if not wanted[split]:
      continue
    if not SHORTEST <= len(mission.split()) <= LONGEST:
      continue
    frames = play(level, tile)
    if frames is None:
      continue
    wanted[split] -= 1
    name = f"{split}-{unit}-{wanted[split]:02d}"
    words = set(mission.replace(",", " ").split())
    rows.append(
      {
        "video": write_clip(out, name, frames),
        "text": mission,
        "id": name,
        "label": "+".join(verb for verb in ERRANDS if verb in words),
        "split": split,
        "group": "",
        "matched": 1,
      }
    )
  return rows


def split_of(mission: str) -> str:
  """The only split that may hold this mission: train 8, val 1, test 1 of 10."""
  digest = hashlib.blake2b(mission.encode(), digest_size=8).digest()
  share = int.from_bytes(digest, "big") % 10
  return "train" if share < 8 else "val" if share < 9 else "test"


def play(level, tile: int) -> list[np.ndarray] | None:
  """Lets the bot carry out the mission; None where it does not succeed.

  Returns:
    Evenly spaced pictures uint8 [H, W, 3], an even number of pixels each way.
  """
  bot, pictures = BabyAIBot(level), []
  for _ in range(MAX_STEPS):
    pictures.append(_picture(level, tile))
    try:
      action = bot.replan()
    except AssertionError:  # the bot has no plan
      return None
    _, reward, ended, _, _ = level.step(action)
    if ended:
      pictures.append(_picture(level, tile))
      return [pictures[i] for i in moments(len(pictures))] if reward else None
  return None


def _picture(level, tile):
  picture = level.grid.render(tile, level.agent_pos, level.agent_dir)
  odd = [(0, size % 2) for size in picture.shape[:2]]  # H.264 needs even ones
  return np.pad(picture, (*odd, (0, 0)))


if __name__ == "__main__":
  define_flags()
  cli.run(main)
