"""What a synthetic clip shows: coloured things, each with two motions in turn.

A scene is drawn from its address (seed, split, index) alone.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "val", "test")
STYLES = ("varied", "plain", "hard")
NUM_FRAMES = 16

COLOURS = {
  "red": (225, 40, 40),
  "orange": (250, 140, 20),
  "yellow": (245, 230, 50),
  "green": (50, 190, 60),
  "cyan": (60, 225, 235),
  "blue": (45, 75, 240),
  "purple": (140, 50, 190),
  "pink": (255, 140, 195),
  "white": (250, 250, 250),
}
RADIUS = {"small": 0.10, "medium": 0.14, "large": 0.19}  # of the frame's side
SHAPES = (
  "circle",
  "square",
  "triangle",
  "star",
  "cross",
  "heart",
  "ring",
  "crescent",
)
TEXTURES = ("plain", "striped", "dotted", "checked")
ROUND = ("circle", "ring")  # turning one shows only if it has a texture
GROWTH = 1.5

# A whole motion changes (x, y, log radius / log GROWTH, turns) by this much.
STEPS = {
  "left": (-1, 0, 0, 0),
  "right": (1, 0, 0, 0),
  "up": (0, -1, 0, 0),
  "down": (0, 1, 0, 0),
  "grow": (0, 0, 1, 0),
  "shrink": (0, 0, -1, 0),
  "spin": (0, 0, 0, 1),
  "blink": (0, 0, 0, 0),
  "stay": (0, 0, 0, 0),
}
PLAIN_MOTIONS = tuple(motion for motion in STEPS if motion != "spin")
KINDS = {
  "slide": ("left", "right", "up", "down"),
  "spin": ("spin",),
  "resize": ("grow", "shrink"),
  "blink": ("blink",),
}
CLASSES = tuple(itertools.permutations(KINDS, 2))  # of the main thing: 12


@dataclasses.dataclass(frozen=True)
class Thing:
  """One moving thing; lengths are fractions of the frame's side."""

  shape: str
  colour: str
  size: str
  texture: str
  motions: tuple[str, str]
  switch: float  # when the second motion takes over, of the clip's duration
  travel: float  # how far it slides
  angle: float  # at the start, radians
  turn: float  # by how much it spins, radians, signed
  x: float = 0.0  # the centre at the start, to the right
  y: float = 0.0  # and downwards


@dataclasses.dataclass(frozen=True)
class Scene:
  """What a clip shows; `things[0]` is the main one, and the largest."""

  things: tuple[Thing, ...]
  label: str
  seed: int  # of the background, the camera and the caption
  style: str = "varied"  # or another of STYLES, see corpus.py


def combination(things: Sequence[Thing]) -> str:
  """Returns what a split may own: shape, colour and motions of each thing."""
  parts = (
    f"{thing.colour} {thing.shape} {'>'.join(thing.motions)}"
    for thing in things
  )
  return " + ".join(sorted(parts))


def split_of(things: Sequence[Thing]) -> str:
  """Returns the only split that may show this: train 6, val 2, test 2 of 10."""
  digest = hashlib.blake2b(combination(things).encode(), digest_size=8).digest()
  share = int.from_bytes(digest, "big") % 10
  return "train" if share < 6 else "val" if share < 8 else "test"


def sample_scene(
  seed: int,
  split: str,
  index: int,
  *,
  max_objects: int = 3,
  style: str = "varied",
) -> Scene:
  """Draws scene `index` of `split`; the same arguments give the same scene."""
  rng = np.random.default_rng([seed, SPLITS.index(split), index])
  if style == "plain":
    label = PLAIN_MOTIONS[index % len(PLAIN_MOTIONS)]
    draw = functools.partial(_plain_things, rng, label, max_objects)
  elif style == "hard":
    label = SHAPES[index % len(SHAPES)]
    draw = functools.partial(_hard_things, rng, label, max_objects)
  else:
    kinds = CLASSES[index % len(CLASSES)]
    label = "_then_".join(kinds)
    draw = functools.partial(_sample_things, rng, kinds, max_objects)
  things = draw()
  while split_of(things) != split:
    things = draw()
  return Scene(
    things=_place(rng, things),
    label=label,
    seed=int(rng.integers(2**62)),
    style=style,
  )


def _plain_things(rng, motion, max_objects) -> tuple[Thing, ...]:
  """Exactly `max_objects` large, plain things, each with one motion."""
  colours = rng.permutation(list(COLOURS))[:max_objects]
  motions = [motion, *rng.choice(PLAIN_MOTIONS, max_objects - 1)]
  return tuple(
    Thing(
      shape=pick(rng, SHAPES),
      colour=str(colour),
      size="medium" if place else "large",
      texture="plain",
      motions=(str(motions[place]), "stay"),
      switch=0.99,
      travel=rng.uniform(0.28, 0.4),
      angle=rng.uniform(-0.25, 0.25),
      turn=0.0,
    )
    for place, colour in enumerate(colours)
  )


def _hard_things(rng, shape, max_objects) -> tuple[Thing, ...]:
  """Exactly `max_objects` small things that stay; the first has the shape."""
  colours = rng.permutation(list(COLOURS))[:max_objects]
  return tuple(
    Thing(
      shape=pick(rng, SHAPES) if place else shape,
      colour=str(colour),
      size="small" if place else "medium",
      texture=pick(rng, TEXTURES),
      motions=("stay", "stay"),
      switch=0.5,
      travel=0.0,
      angle=rng.uniform(-0.25, 0.25),
      turn=0.0,
    )
    for place, colour in enumerate(colours)
  )


def _sample_things(rng, kinds, max_objects) -> tuple[Thing, ...]:
  """Draws things without their places; a scene never repeats a colour."""
  weights = np.array([0.2, 0.45, 0.35])[:max_objects]
  count = 1 + rng.choice(max_objects, p=weights / weights.sum())
  colours = rng.permutation(list(COLOURS))[:count]
  main_size = rng.integers(count > 1, len(RADIUS))  # others must be smaller
  things = []
  for place, colour in enumerate(colours):
    if place == 0:
      size = main_size
      motions = tuple(pick(rng, KINDS[kind]) for kind in kinds)
    else:
      size = rng.integers(main_size)
      motions = tuple(str(m) for m in rng.permutation(list(STEPS))[:2])
    shape = pick(rng, SHAPES)
    must_show_turn = shape in ROUND and "spin" in motions
    things.append(
      Thing(
        shape=shape,
        colour=str(colour),
        size=tuple(RADIUS)[size],
        texture=pick(rng, TEXTURES[1:] if must_show_turn else TEXTURES),
        motions=motions,
        switch=rng.uniform(0.4, 0.6),
        travel=rng.uniform(0.28, 0.4),
        angle=rng.uniform(-0.25, 0.25),
        turn=pick(rng, (-1, 1)) * rng.uniform(2.2, 2.8),
      )
    )
  return tuple(things)


def _place(rng, things, tries: int = 32) -> tuple[Thing, ...]:
  """Draws starts that keep all in view, and apart at all times if it can."""
  starts, centres, radii = [], [], []
  for thing in things:
    offset, radius, _, _ = track(thing, NUM_FRAMES)  # offset [T, 2]
    low = np.max(radius[:, None] - offset, axis=0)
    high = np.min(1 - radius[:, None] - offset, axis=0)
    starts.append(rng.uniform(low, high, size=(tries, 2)))  # [tries, 2]
    centres.append(starts[-1][:, None] + offset)  # [tries, T, 2]
    radii.append(radius)
  gap = np.zeros(tries)
  for i, j in itertools.combinations(range(len(things)), 2):
    distance = np.linalg.norm(centres[i] - centres[j], axis=-1)  # [tries, T]
    gap = np.minimum(gap, np.min(distance - radii[i] - radii[j], axis=1))
  best = int(np.argmax(gap))  # the first without overlap, or the least bad
  return tuple(
    dataclasses.replace(thing, x=float(start[best, 0]), y=float(start[best, 1]))
    for thing, start in zip(things, starts, strict=True)
  )


def track(
  thing: Thing, num_frames: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns centre [T, 2], radius [T], angle [T] and visible [T] (0 or 1)."""
  now = np.linspace(0, 1, num_frames)[:, None]
  begin = np.array([0, thing.switch])
  length = np.array([thing.switch, 1 - thing.switch])
  progress = np.clip((now - begin) / length, 0, 1)  # [T, 2], of each motion
  moved = progress @ np.array([STEPS[motion] for motion in thing.motions])
  blinks = np.array([motion == "blink" for motion in thing.motions])
  hidden = np.any(blinks & (np.cos(4 * np.pi * progress) < -1e-6), axis=1)
  return (
    np.array([thing.x, thing.y]) + thing.travel * moved[:, :2],
    RADIUS[thing.size] * GROWTH ** moved[:, 2],
    thing.angle + thing.turn * moved[:, 3],
    1.0 - hidden,
  )


def pick(rng: np.random.Generator, options: Sequence):
  """Returns one of the options, each as likely."""
  return options[rng.integers(len(options))]
