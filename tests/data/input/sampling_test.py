"""Addresses: which sample stands at which position."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import PLAIN_SAMPLING

from calince_jax.data.input import sampling
from calince_jax.data.input.sampling import Mix


@pytest.mark.parametrize(
  "kind, available, expected",
  [
    # The middles of four equal parts.
    ("uniform", 8, [1, 3, 5, 7]),
    ("uniform", 16, [2, 6, 10, 14]),
    ("uniform", 2, [0, 0, 1, 1]),
    ("uniform", 1, [0, 0, 0, 0]),
    # Every second frame from the middle start.
    ("window", 9, [1, 3, 5, 7]),
    ("window", 7, [0, 2, 4, 6]),
    # Too short for a window: uniform.
    ("window", 4, [0, 1, 2, 3]),
  ],
)
def test_frames_without_randomness(kind, available, expected):
  how = replace(PLAIN_SAMPLING, frames=kind, frame_stride=2)
  assert sampling.sample_frames(how, available, None).tolist() == expected


@pytest.mark.parametrize("kind", sampling.FRAME_SAMPLINGS)
@pytest.mark.parametrize("available", [1, 3, 4, 11, 100])
def test_random_frames_lie_in_the_clip_in_order(kind, available):
  how = replace(PLAIN_SAMPLING, frames=kind, frame_stride=2)
  seen = set()
  for p in range(1_000):
    frames = sampling.sample_frames(how, available, sampling.generator(0, p))
    assert (np.diff(frames) >= 0).all()
    assert frames[0] >= 0 and frames[-1] < available
    seen.update(frames.tolist())
  assert seen == set(range(available))  # every frame is used some time


def test_random_crops_lie_in_the_picture_and_have_the_area():
  how = replace(PLAIN_SAMPLING, min_crop_area=0.5)
  areas = []
  for p in range(300):
    y, x, h, w = sampling.sample_crop(how, 120, 90, sampling.generator(1, p))
    assert 0 <= y <= 90 - h and 0 <= x <= 120 - w
    areas.append(h * w / (120 * 90))
  assert 0.48 < min(areas) < 0.6 and 0.9 < max(areas) <= 1.0


def test_the_middle_square_is_the_crop_of_evaluation():
  box = sampling.sample_crop(PLAIN_SAMPLING, 120, 90, None)
  assert box.tolist() == [0, 15, 90, 90]
  boxes = [sampling.view_crop(120, 90, crop, 3).tolist() for crop in range(3)]
  assert boxes == [[0, 0, 90, 90], [0, 15, 90, 90], [0, 30, 90, 90]]


def test_test_views_spread_over_the_clip():
  how = replace(PLAIN_SAMPLING, frames="window", frame_stride=2)
  starts = [sampling.view_frames(how, 27, clip, 3)[0] for clip in range(3)]
  assert starts == [0, 10, 20]
  whole = PLAIN_SAMPLING
  views = [sampling.view_frames(whole, 16, clip, 2) for clip in range(2)]
  assert views[0].tolist() != views[1].tolist()


def test_a_sample_is_its_address():
  how = PLAIN_SAMPLING
  for p in (0, 7, 2**40):
    first, again = (
      sampling.sample_frames(how, 50, sampling.generator(3, p)).tolist()
      for _ in range(2)
    )
    assert first == again
  other = sampling.sample_frames(how, 50, sampling.generator(4, 7)).tolist()
  assert (
    other != sampling.sample_frames(how, 50, sampling.generator(3, 7)).tolist()
  )


def test_a_mix_reads_each_data_set_by_weight_and_in_turn():
  mix = Mix([3, 1])
  turns = {0: [], 1: []}
  for d, turn in zip(*mix(np.arange(5_000)), strict=True):
    turns[d].append(turn)
  for seen in turns.values():
    assert seen == list(range(len(seen)))  # none left out, none twice
  assert abs(len(turns[0]) / 5_000 - 0.75) < 0.002
  # Spread evenly: never far from its share, at any position.
  read = np.cumsum(mix(np.arange(5_000))[0] == 1)
  assert np.abs(read - np.arange(1, 5_001) / 4).max() <= 1.5


def test_a_mix_of_one_reads_in_order():
  d, turn = Mix([0.2])(np.arange(3))
  assert d.tolist() == [0, 0, 0] and turn.tolist() == [0, 1, 2]


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [1, 1e-6]])
def test_weights_must_be_positive_and_not_too_small(weights):
  with pytest.raises(ValueError, match="weight"):
    Mix(weights)


@pytest.mark.parametrize(
  "wrong",
  [
    {"frames": "all"},
    {"num_frames": 0},
    {"min_crop_area": 0.0},
    {"frame_stride": 0},
  ],
)
def test_wrong_choices_are_named(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    replace(PLAIN_SAMPLING, **wrong)


def test_clips_are_mirrored_unless_the_caption_names_a_side():
  def share(flip, text):
    how = replace(PLAIN_SAMPLING, flip=flip)
    rngs = [sampling.generator(0, p) for p in range(200)]
    return np.mean([sampling.sample_flip(how, text, rng) for rng in rngs])

  for text in ("a ball rolls", "it is brightly lit", "leftover rice"):
    assert share("never", text) == 0
    assert 0.4 < share("always", text) == share("unsided", text) < 0.6
  for text in ("turn LEFT", "her right-hand side", "leftmost", "clockwise"):
    assert share("unsided", text) == 0 and share("always", text) > 0.4


def test_colours_change_around_grey_and_within_the_range():
  still = sampling.sample_colours(PLAIN_SAMPLING, sampling.generator(0, 0))
  np.testing.assert_allclose(still, np.eye(4, 3), atol=1e-6)
  how = replace(PLAIN_SAMPLING, colour_jitter=0.4)
  pixel, grey = np.array([[200.0, 40, 90, 1]]), np.array([[90.0, 90, 90, 1]])
  spread = []
  for p in range(100):
    M = sampling.sample_colours(how, sampling.generator(0, p))
    assert np.ptp(grey @ M) < 1e-3  # grey stays grey
    assert 0.6 * (0.6 * 90) - 1e-3 < (grey @ M)[0, 0] < 1.4 * 127.5
    spread.append(np.ptp(pixel @ M) / 160)
  assert min(spread) < 0.5 and max(spread) > 1.5
