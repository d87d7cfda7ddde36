"""Describes a synthetic scene in English, in one of many ways.

Every caption names the shape, the colour and both motions of every thing, so
it is true of no other combination; the rest may be left out.
"""

import numpy as np

from calince_jax.data.synthetic import scene as synthetic_scene

COLOUR_WORDS = {
  "red": ("red", "red", "crimson"),
  "orange": ("orange",),
  "yellow": ("yellow", "yellow", "golden"),
  "green": ("green", "green", "emerald"),
  "cyan": ("cyan", "turquoise"),
  "blue": ("blue",),
  "purple": ("purple", "violet"),
  "pink": ("pink", "pink", "rosy"),
  "white": ("white",),
}
SHAPE_WORDS = {
  "circle": ("circle", "disc", "round shape"),
  "square": ("square", "square", "box"),
  "triangle": ("triangle", "triangle", "three-cornered shape"),
  "star": ("star", "star", "five-pointed star"),
  "cross": ("cross", "plus sign"),
  "heart": ("heart", "heart", "heart shape"),
  "ring": ("ring", "hoop"),
  "crescent": ("crescent", "moon", "half-moon"),
}
SIZE_WORDS = {
  "small": ("small", "little", "tiny"),
  "medium": ("medium-sized", "mid-sized"),
  "large": ("large", "big", "huge"),
}
TEXTURE_WORDS = {
  "plain": ("plain", "solid"),
  "striped": ("striped", "stripy"),
  "dotted": ("dotted", "spotted"),
  "checked": ("checked", "checkered"),
}
# As a verb, and as its -ing form; slides are completed with where they go.
SLIDES = (
  ("slides", "sliding"),
  ("moves", "moving"),
  ("glides", "gliding"),
  ("goes", "going"),
)
MOTION_WORDS = {
  "left": ("left", "to the left", "leftwards"),
  "right": ("right", "to the right", "rightwards"),
  "up": ("up", "upwards", "to the top"),
  "down": ("down", "downwards", "to the bottom"),
  "grow": (
    ("grows", "growing"),
    ("gets bigger", "getting bigger"),
    ("expands", "expanding"),
  ),
  "shrink": (
    ("shrinks", "shrinking"),
    ("gets smaller", "getting smaller"),
    ("contracts", "contracting"),
  ),
  "spin": (
    ("spins", "spinning"),
    ("rotates", "rotating"),
    ("turns around", "turning around"),
  ),
  "blink": (
    ("blinks", "blinking"),
    ("flashes", "flashing"),
    ("flickers", "flickering"),
  ),
  "stay": (
    ("stays still", "staying still"),
    ("rests", "resting"),
    ("waits", "waiting"),
  ),
}
# {a} comes before {b} in time, in whichever order they are told.
CLAUSES = (
  "{it} {a}, then {b}",
  "{it} {a} and then {b}",
  "{it} first {a} and later {b}",
  "{it} {a} before {b_ing}",
  "{it} {b} after {a_ing}",
  "after {a_ing}, {it} {b}",
  "before {b_ing}, {it} {a}",
  "{it} begins by {a_ing} and ends by {b_ing}",
)
# Of a hard scene: where a thing is, by thirds of the picture.
ROWS = (("top", "upper"), ("middle", "central"), ("bottom", "lower"))
SIDES = (("left", "left edge"), ("centre", "middle"), ("right", "right edge"))
JOINTS = (", while ", "; ", "; also, ", ". at the same time, ")
FRAMES = ("{}", "{}", "{}.", "in this clip, {}", "a video where {}", "{}!")


def caption(scene: synthetic_scene.Scene, *, variant: int = 0) -> str:
  """Returns an English sentence; other variants are other paraphrases.

  Of a plain scene, the bare words: "red star up and blue square grow".
  """
  rng = np.random.default_rng([scene.seed, 1, variant])
  if scene.style == "plain":
    clauses = [
      f"{thing.colour} {thing.shape} {thing.motions[0]}"
      for thing in scene.things
    ]
    return " and ".join(clauses[i] for i in rng.permutation(len(clauses)))
  if scene.style == "hard":
    clauses = [_place_clause(rng, thing) for thing in scene.things]
    return " and ".join(clauses[i] for i in rng.permutation(len(clauses)))
  clauses = [_clause(rng, thing) for thing in scene.things]
  order = rng.permutation(len(clauses))
  text = synthetic_scene.pick(rng, JOINTS).join(clauses[i] for i in order)
  text = synthetic_scene.pick(rng, FRAMES).format(text)
  return text.capitalize() if rng.random() < 0.5 else text


def _place_clause(rng, thing: synthetic_scene.Thing) -> str:
  """Returns such as "a tiny red star at the top left"."""
  row, column = (min(int(3 * x), 2) for x in (thing.y, thing.x))
  place = (ROWS[row], SIDES[column])
  place = " ".join(synthetic_scene.pick(rng, words) for words in place)
  return f"{_name(rng, thing)} at the {place}"


def _clause(rng, thing: synthetic_scene.Thing) -> str:
  it = _name(rng, thing)
  (a, a_ing), (b, b_ing) = (_verb(rng, motion) for motion in thing.motions)
  return synthetic_scene.pick(rng, CLAUSES).format(
    it=it, a=a, b=b, a_ing=a_ing, b_ing=b_ing
  )


def _name(rng, thing: synthetic_scene.Thing) -> str:
  adjectives = [synthetic_scene.pick(rng, COLOUR_WORDS[thing.colour])]
  if rng.random() < 0.5:
    adjectives.insert(
      0, synthetic_scene.pick(rng, TEXTURE_WORDS[thing.texture])
    )
  if rng.random() < 0.5:
    adjectives.insert(0, synthetic_scene.pick(rng, SIZE_WORDS[thing.size]))
  name = " ".join(
    [*adjectives, synthetic_scene.pick(rng, SHAPE_WORDS[thing.shape])]
  )
  article = synthetic_scene.pick(
    rng, ("an" if name[0] in "aeiou" else "a", "the")
  )
  return f"{article} {name}"


def _verb(rng, motion: str) -> tuple[str, str]:
  words = synthetic_scene.pick(rng, MOTION_WORDS[motion])
  if motion in synthetic_scene.KINDS["slide"]:
    verb, verb_ing = synthetic_scene.pick(rng, SLIDES)
    return f"{verb} {words}", f"{verb_ing} {words}"
  return words
