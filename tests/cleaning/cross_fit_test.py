import numpy as np

from calince_jax.cleaning import cross_fit, folds
from calince_jax.cleaning.cross_fit import Data


def make_data(P=300, seed=0):
  rng = np.random.default_rng(seed)
  content = rng.normal(size=(P, 6))
  video = content @ rng.normal(size=(6, 16)) + 0.5 * rng.normal(size=(P, 16))
  text = content @ rng.normal(size=(6, 12)) + 0.5 * rng.normal(size=(P, 12))
  fold, _ = folds.assign_folds(np.arange(P), [""] * P, folds=5, seed=0)
  return Data(
    video.astype(np.float32),
    text.astype(np.float32),
    np.arange(P),
    np.arange(P),
    fold,
  )


def fitted(data, weights=None):
  weights = np.ones(len(data.fold), np.float32) if weights is None else weights
  return cross_fit.fit(cross_fit.grams(data, weights, 0), (0.1, 0.1))


def test_the_models_of_a_fold_never_saw_its_pairs():
  data = make_data()
  before = fitted(data)
  data.text[data.fold == 2] = 7.0  # nonsense in fold 2
  after = fitted(data)
  for ours, theirs in zip(before, after, strict=True):
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-3, atol=1e-5)
    assert np.abs(ours[1] - theirs[1]).max() > 0.01


def test_maps_are_those_of_weighted_ridge_regression():
  data = make_data()
  weights = np.random.default_rng(1).uniform(size=300).astype(np.float32)
  W, _ = fitted(data, weights)
  others = data.fold != 3
  v, t, w = data.video[others], data.text[others], weights[others, None]
  gram = v.T @ (w * v)
  ridge = 0.1 * np.trace(gram) / 16 * np.eye(16)
  expected = np.linalg.solve(gram + ridge, v.T @ (w * t))
  np.testing.assert_allclose(W[3], expected, rtol=1e-3, atol=1e-4)


def test_given_pairs_score_above_other_captions_and_a_wrong_one_does_not():
  data = make_data()
  data.text[[10, 11]] = data.text[[11, 10]]
  maps = fitted(data)
  raw = cross_fit.score(data, maps, 0)
  scale = cross_fit.scale_of(raw)
  x, negatives = scale.join(raw.given), scale.join(raw.negatives)
  assert np.isfinite(x).all()
  assert (x[:, None] > negatives).mean() > 0.95
  assert max(x[10], x[11]) < np.median(x) - 1
  best, highest = cross_fit.best_captions(data, maps, scale, np.array([10]))
  assert best[0] == 11 and highest[0] > x[10]


def test_negatives_are_neither_of_the_same_clip_nor_of_the_same_words():
  data = make_data()
  data.same[:] = np.arange(300) // 60  # five different captions
  data.clip[:] = np.arange(300) // 2
  fold, _ = folds.assign_folds(data.clip, [""] * 300, folds=5, seed=0)
  data.fold[:] = fold
  # With text equal to its number, a negative's score says whose it was.
  raw = cross_fit.score(data, fitted(data), 0)
  assert np.isnan(raw.negatives).any()
  near = cross_fit.near_captions(data, np.arange(300), 5)
  assert (data.same[near] != data.same[:, None]).all()
  assert (data.clip[near] != data.clip[:, None]).all()


def test_scores_of_chosen_pairs_are_those_of_the_whole():
  data = make_data()
  maps = fitted(data)
  raw = cross_fit.score(data, maps, 0)
  scale = cross_fit.scale_of(raw)
  rows = np.arange(300)
  np.testing.assert_allclose(
    cross_fit.score_pairs(data, maps, scale, rows, rows),
    scale.join(raw.given),
    rtol=1e-4,
    atol=1e-4,
  )


def test_folds_keep_groups_whole_where_there_are_enough():
  clip = np.arange(100)
  groups = [f"day {i // 4}" for i in range(100)]
  fold, unit = folds.assign_folds(clip, groups, folds=5, seed=0)
  assert unit == "group"
  for i in range(100):
    assert fold[i] == fold[4 * (i // 4)]
  assert np.bincount(fold).max() - np.bincount(fold).min() <= 4
  _, unit = folds.assign_folds(clip, ["one"] * 100, folds=5, seed=0)
  assert unit == "clip"
