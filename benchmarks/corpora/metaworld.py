"""A corpus of robots at work: Meta-World's scripted policies, in MuJoCo.

    apt-get install libosmesa6
    python3 -m venv ENV
    ENV/bin/pip install metaworld packaging av absl-py 'etils[epath]'
    ENV/bin/python -m benchmarks.corpora.metaworld --out=DIR

writes DIR/clips/*.mp4 and DIR/manifest.csv. ENV is one to throw away: nothing
else of this project needs these packages. 50 tasks, of each 60 clips to train
on, 10 to validate and 10 to test, 8 frames from the start to the success of an
episode; the seed of an episode draws where things stand.

* text: one of some phrasings of the task, often with where the thing stands.
* label: the task.
* group: ten episodes of a task under one camera, whose angle is drawn anew for
  each group. Captions exchanged at random are of the same task in one case of
  fifty, and may then be right although they count as wrong.

Without a display, MuJoCo renders with OSMesa, on one core a process: about 50
pictures a second, without shadows and smoothing (five times slower).
"""

import functools
import os
import zlib
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("LP_NUM_THREADS", "1")  # of the software renderer

import mujoco
import numpy as np
from absl import flags
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

from benchmarks.corpora.clips import make_corpus, moments, write_clip
from benchmarks.corpora.metaworld_sentences import (
  FRAMES,
  LEFT_RIGHT,
  NEAR_FAR,
  PHRASES,
)
from calince_jax import cli

MAX_STEPS = 300  # of an episode; one without success is drawn again
AFTER = 5  # steps that are shown after the success
CLIPS = {"train": 60, "val": 10, "test": 10}  # of each task
GROUP = 10  # clips


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("out", None, "folder to write", required=True)
  flags.DEFINE_integer("size", 64, "height and width in pixels", 16)
  flags.DEFINE_list("tasks", list(PHRASES), "some of the tasks")
  flags.DEFINE_integer("num_workers", 2, "processes", 1)


def main() -> None:
  """Makes the corpus."""
  F = flags.FLAGS
  make_corpus(
    F.out,
    {"corpus": "metaworld", "size": F.size, "tasks": F.tasks, "clips": CLIPS},
    F.tasks,
    functools.partial(make_task, size=F.size),
    F.num_workers,
  )


def make_task(task: str, out: Path, *, size: int) -> list[dict]:
  """Writes the clips of one task; returns their rows of the manifest."""
  environment = simulator(task)
  environment.model.vis.quality.offsamples = 0
  renderer = mujoco.Renderer(environment.model, size, size)
  renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
  renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
  rows, seed = [], -1
  for split, count in CLIPS.items():
    for number in range(count):
      states = None
      while states is None:
        seed += 1
        place, states = play(environment, f"{task}-v3", seed)
      group = f"{task}-{split}-{number // GROUP}"
      view = camera(_generator(group))
      name = f"{task}-{split}-{number:03d}"
      frames = render(environment, renderer, states, view)
      rows.append(
        {
          "video": write_clip(out, name, frames),
          "text": sentence(_generator(name), task, place),
          "id": name,
          "label": task,
          "split": split,
          "group": group,
          "matched": 1,
        }
      )
  renderer.close()
  return rows


def simulator(task: str):
  """The task's environment; each reset draws places anew, from the seed."""
  environment = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
  environment._set_task_called, environment._freeze_rand_vec = True, False
  environment.seeded_rand_vec = True
  # The policies need to see the goal, within bounds that are made again.
  environment._partially_observable = False
  environment.__dict__.pop("sawyer_observation_space", None)
  return environment


def play(environment, name: str, seed: int):
  """Plays an episode with the task's scripted policy.

  Returns:
    (x, y) of the thing at the start, or of the goal where the task has only
    that; and the simulator's states, None where the policy failed.
  """
  environment.seed(seed)
  observation, _ = environment.reset()
  thing = environment._target_pos if "reach" in name else observation[4:7]
  policy, states, end = ENV_POLICY_MAP[name](), [], MAX_STEPS
  for step in range(MAX_STEPS):
    states.append(_state(environment))
    action = np.clip(policy.get_action(observation), -1, 1)
    observation, _, _, _, info = environment.step(action)
    if info["success"] and end == MAX_STEPS:
      end = step + AFTER
    if step == end:
      return thing[:2].copy(), states
  return thing[:2].copy(), None


def _state(environment):
  data = environment.data
  return [np.copy(x) for x in (data.qpos, data.mocap_pos, data.mocap_quat)]


def _generator(name: str) -> np.random.Generator:
  return np.random.default_rng(zlib.crc32(name.encode()))


def camera(rng: np.random.Generator) -> mujoco.MjvCamera:
  """Looks over the robot's shoulder, from a slightly other place each time."""
  view = mujoco.MjvCamera()
  view.lookat[:] = np.add((0, 0.65, 0.1), rng.normal(0, 0.02, 3))
  view.distance = rng.uniform(1.05, 1.25)
  view.azimuth = rng.uniform(120, 145)
  view.elevation = rng.uniform(-45, -32)
  return view


def render(environment, renderer, states, view) -> list[np.ndarray]:
  """Pictures uint8 [size, size, 3] of evenly spaced states."""
  data, frames = environment.data, []
  for moment in moments(len(states)):
    data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = states[moment]
    mujoco.mj_forward(environment.model, data)
    renderer.update_scene(data, camera=view)
    frames.append(renderer.render().copy())
  return frames


def sentence(rng: np.random.Generator, task: str, place: np.ndarray) -> str:
  """One way to say the task, with where the thing stands three times of four.

  Args:
    rng: draws the way.
    task: a key of PHRASES.
    place: (x, y) in metres; the robot stands at (0, 0) and looks along y.
  """
  parts = [_pick(rng, PHRASES[task])]
  x, y = place
  if rng.random() < 0.5:
    parts.append(_pick(rng, LEFT_RIGHT[int(x > -0.03) + int(x > 0.03)]))
  if rng.random() < 0.5:
    parts.append(_pick(rng, NEAR_FAR[int(y > 0.6) + int(y > 0.72)]))
  return _pick(rng, FRAMES).format(" ".join(parts))


def _pick(rng, options):
  return options[rng.integers(len(options))]


if __name__ == "__main__":
  define_flags()
  cli.run(main)
