"""Addresses: which record, caption, frames and crop a position stands for.

A sample is an address. The position p, counted over the whole run and over
all hosts, decides with the seed everything about the sample, so that the step
number is the whole state of the data: step s of a run with batch size B holds
the positions [s B, (s + 1) B), on any number of hosts.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import numpy as np

from calince_jax import fields
from calince_jax.fields import OneOf, Range

FRAME_SAMPLINGS = ("uniform", "window")
FLIPS = ("never", "unsided", "always")
RESIZES = ("bilinear", "antialiased")
MIX_SLOTS = 1024
SUBSTITUTES = 100  # records that are tried in place of a corrupt one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How a clip becomes an array [num_frames, image_size, image_size, 3].

  A part of `config.data`; configs/base.py has the defaults.

  Attributes:
    num_frames: T.
    image_size: pixels.
    frames: `uniform`, one frame from each of T equal parts of the clip; or
      `window`, every `frame_stride`-th stored frame from a random start (a
      clip that is too short for it is sampled uniformly).
    frame_stride: of `window`.
    min_crop_area: a training crop holds at least this share of the picture;
      1.0 takes the largest square in the middle.
    resize: see frames.decode.
    flip: mirror half of the training clips: `always`, which is wrong where a
      caption says left or right; `unsided`, only where the caption that is
      taken names no side (in English); or `never`.
    colour_jitter: the most by which brightness, contrast and saturation of a
      training clip are changed, all of its frames alike; 0 changes nothing.
  """

  num_frames: Annotated[int, Range("[1, 4096]")]
  image_size: Annotated[int, Range("[1, 4096]")]
  frames: Annotated[str, OneOf(FRAME_SAMPLINGS)]
  frame_stride: Annotated[int, Range("[1, 1e6]")]
  min_crop_area: Annotated[float, Range("(0, 1]")]
  resize: Annotated[str, OneOf(RESIZES)]
  flip: Annotated[str, OneOf(FLIPS)]
  colour_jitter: Annotated[float, Range("[0, 1]")]

  def __post_init__(self):
    fields.check_instance(self)


class Mix:
  """Which data set each position reads, by weight, in a fixed pattern.

  The pattern of at most MIX_SLOTS positions is repeated; a data set's turns
  are spread evenly over it. So its q-th turn can be told from p alone.
  """

  def __init__(self, weights: Sequence[float]):
    """`weights`: one for each data set, positive, of any sum.

    Raises:
      ValueError: a weight is not positive, or too small for the pattern.
    """
    weights = np.asarray(weights, np.float64)
    if not (len(weights) and (weights > 0).all() and weights.sum() < np.inf):
      raise ValueError(
        f"the weights of a mix must be positive and finite: {weights}"
      )
    slots = 1 if len(weights) == 1 else MIX_SLOTS
    share = weights / weights.sum() * slots
    counts = np.floor(share).astype(np.int64)
    largest_remainders = np.argsort(counts - share, kind="stable")
    counts[largest_remainders[: slots - counts.sum()]] += 1
    if not counts.all():
      raise ValueError(f"a weight in {weights} is below 1/{slots} of their sum")
    turns = [
      ((j + 0.5) / count, d, j)
      for d, count in enumerate(counts)
      for j in range(count)
    ]
    self.counts = counts
    self.dataset = np.array([d for _, d, _ in sorted(turns)], np.int64)
    self.turn = np.array([j for _, _, j in sorted(turns)], np.int64)

  def __call__(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the data set of each position, and how often it was read before.

    Args:
      p: int64 [n].
    """
    block, slot = np.divmod(p, len(self.dataset))
    d = self.dataset[slot]
    return d, block * self.counts[d] + self.turn[slot]


def addresses(
  mix: Mix, sizes: Sequence[int], seed: int
) -> Callable[[np.ndarray], tuple[list[int], list[int]]]:
  """Returns the function from positions [n] to data sets [n] and records [n].

  Args:
    mix: of the data sets.
    sizes: number of records of each.
    seed: of the orders; each epoch of each data set has an order of its own.
  """
  import tensorflow as tf  # the rest of this module runs without it

  sizes = np.array(sizes)

  def address(p):
    d, turn = mix(p)
    epoch, index = np.divmod(turn, sizes[d])
    order = epoch * len(sizes) + d
    for one in np.unique(order):
      index[order == one] = tf.random.experimental.index_shuffle(
        index[order == one],
        np.array([seed, one], np.int32),
        sizes[one % len(sizes)] - 1,
      )
    return d.tolist(), index.tolist()

  return address


def generator(seed: int, position: int) -> np.random.Generator:
  """Returns the random numbers of one sample, a counter-based stream."""
  return np.random.Generator(np.random.Philox(key=[seed, position]))


def substitutes(seed: int, position: int, size: int) -> Iterator[int]:
  """Yields the records to try in turn where a position's own is corrupt.

  SUBSTITUTES draws of [0, size), with repetitions, from (seed, position) alone.
  The same key as `generator`, 2^192 draws further on.
  """
  stream = np.random.Philox(key=[seed, position], counter=[0, 0, 0, 1])
  yield from (
    np.random.Generator(stream).integers(size, size=SUBSTITUTES).tolist()
  )


def sample_frames(
  sampling: Sampling, available: int, rng: np.random.Generator | None
) -> np.ndarray:
  """Returns the indices of T frames to decode, int64 [T], not decreasing.

  Args:
    sampling: see Sampling.
    available: the number of stored frames, at least 1.
    rng: None for the middle of what training samples from.
  """
  T = sampling.num_frames
  span = (T - 1) * sampling.frame_stride + 1
  if sampling.frames == "window" and available >= span:
    last = available - span
    start = last // 2 if rng is None else rng.integers(last + 1)
    return start + sampling.frame_stride * np.arange(T)
  place = np.full(T, 0.5) if rng is None else rng.random(T)
  return np.minimum(
    ((np.arange(T) + place) * available / T).astype(np.int64), available - 1
  )


def sample_crop(
  sampling: Sampling, width: int, height: int, rng: np.random.Generator | None
) -> np.ndarray:
  """Returns the box to decode, int32 [y, x, height, width].

  With `rng`, a box of a random area and of an aspect ratio in [3/4, 4/3]
  (Szegedy et al., 2015); without, or with min_crop_area = 1, the largest
  square in the middle.
  """
  if rng is not None and sampling.min_crop_area < 1:
    for _ in range(10):
      area = rng.uniform(sampling.min_crop_area, 1.0) * width * height
      aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
      w = round(np.sqrt(area * aspect))
      h = round(np.sqrt(area / aspect))
      if 1 <= w <= width and 1 <= h <= height:
        y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
        return np.array([y, x, h, w], np.int32)
  side = min(width, height)
  y, x = (height - side) // 2, (width - side) // 2
  return np.array([y, x, side, side], np.int32)


# Words that are no longer true of a mirrored clip.
_SIDES = re.compile(
  r"\b(left|right)(\b|most|wards?\b|-?hand)|clockwise", re.IGNORECASE
)


def sample_flip(
  sampling: Sampling, text: str, rng: np.random.Generator
) -> bool:
  """Returns whether a clip with this caption is mirrored."""
  if sampling.flip == "never":
    return False
  mirrored = rng.random() < 0.5
  named = sampling.flip == "unsided" and _SIDES.search(text) is not None
  return mirrored and not named


def sample_colours(sampling: Sampling, rng: np.random.Generator) -> np.ndarray:
  """Returns how the colours of a clip change, float32 [4, 3].

      [r g b 1] M,  M = saturation, then contrast, then brightness

  with factors of 1 - colour_jitter to 1 + colour_jitter: saturation mixes a
  pixel with its luma (ITU-R BT.601), contrast with medium grey, brightness
  with black.
  """
  s = sampling.colour_jitter
  if not s:
    return np.eye(4, 3, dtype=np.float32)
  brightness, contrast, saturation = rng.uniform(1 - s, 1 + s, 3)
  luma = np.array([0.299, 0.587, 0.114])
  M = np.zeros((4, 3))
  M[:3] = saturation * np.eye(3) + (1 - saturation) * luma[:, None]
  M = contrast * M
  M[3] = 127.5 * (1 - contrast)
  return (brightness * M).astype(np.float32)


def view_frames(
  sampling: Sampling, available: int, clip: int, num_clips: int
) -> np.ndarray:
  """Returns the frames of test view `clip` of `num_clips` along the video."""
  if num_clips == 1:
    return sample_frames(sampling, available, None)
  span = (sampling.num_frames - 1) * sampling.frame_stride + 1
  if sampling.frames == "window" and available >= span:
    start = round(clip * (available - span) / (num_clips - 1))
    return start + sampling.frame_stride * np.arange(sampling.num_frames)
  T = sampling.num_frames
  place = (clip + 0.5) / num_clips
  return np.minimum(
    ((np.arange(T) + place) * available / T).astype(np.int64), available - 1
  )


def view_crop(width: int, height: int, crop: int, num_crops: int) -> np.ndarray:
  """Returns crop `crop` of `num_crops` squares along the longer side."""
  side = min(width, height)
  place = 0.5 if num_crops == 1 else crop / (num_crops - 1)
  y, x = round(place * (height - side)), round(place * (width - side))
  return np.array([y, x, side, side], np.int32)
