import numpy as np
import pytest

from calince_jax.errors import UserError
from calince_jax.evals import recognition


def clips(rng, per_class, classes, spread=1.0, dim=6):
  """Features around one random centre per class, and their class names."""
  centres = np.random.default_rng(9).normal(size=(classes, dim))
  of = np.repeat(np.arange(classes), per_class)
  features = centres[of] + spread * rng.normal(size=(len(of), dim))
  return features.astype(np.float32), [f"class {c}" for c in of]


def test_separable_classes_are_all_right():
  rng = np.random.default_rng(0)
  got = recognition.linear_probe(
    *clips(rng, 12, 7, 0.05), *clips(rng, 5, 7, 0.05), seed=0
  )
  assert got["metrics"] == {"top1": 100, "top5": 100, "mean_class": 100}
  assert got["chance"]["top1"] == pytest.approx(100 / 7)
  assert got["chance"]["top5"] == pytest.approx(500 / 7)
  assert got["majority"]["top1"] == pytest.approx(100 / 7)
  low, high = got["intervals"]["top1"]
  assert 85 < low < 95 and high == 100


def test_shuffled_labels_are_near_chance_and_do_not_choose_on_test():
  rng = np.random.default_rng(1)
  features, labels = clips(rng, 30, 4)
  test, test_labels = clips(rng, 50, 4)
  labels = rng.permutation(labels)
  got = recognition.linear_probe(features, labels, test, test_labels, seed=0)
  assert abs(got["metrics"]["top1"] - 25) < 12
  again = recognition.linear_probe(
    features, labels, test, rng.permutation(test_labels), seed=0
  )
  assert (
    again["protocol"]["regularisation"] == got["protocol"]["regularisation"]
  )


def test_regularisation_is_chosen_in_training():
  """With more dimensions than clips, a strong penalty is the better one."""
  rng = np.random.default_rng(2)
  train = clips(rng, 8, 2, 3.0, 100)
  test = clips(rng, 20, 2, 3.0, 100)
  got = recognition.linear_probe(*train, *test, seed=0)
  only = recognition.linear_probe(*train, *test, seed=0, strengths=(10.0,))
  assert "C = 10," in only["protocol"]["regularisation"]
  assert "C = 10," not in got["protocol"]["regularisation"]
  assert "3-fold" in got["protocol"]["regularisation"]


def test_clips_of_one_group_are_one_witness():
  """Two groups a class cannot be on both sides of three folds."""
  rng = np.random.default_rng(3)
  features, labels = clips(rng, 9, 2)
  alone = recognition.linear_probe(features, labels, features, labels, seed=0)
  grouped = recognition.linear_probe(
    features, labels, features, labels, seed=0, train_groups=6 * list("aab")
  )
  assert "3-fold" in alone["protocol"]["regularisation"]
  assert "not chosen" in grouped["protocol"]["regularisation"]
  enough = recognition.linear_probe(
    features, labels, features, labels, seed=0, train_groups=6 * list("abc")
  )
  assert "3-fold" in enough["protocol"]["regularisation"]


def test_a_class_unknown_in_training_counts_as_wrong_and_is_reported():
  rng = np.random.default_rng(4)
  test, labels = clips(rng, 4, 3, 0.05)
  labels[:4] = ["unseen"] * 4
  got = recognition.linear_probe(*clips(rng, 6, 3, 0.05), test, labels, seed=0)
  assert got["metrics"]["top1"] == pytest.approx(200 / 3)
  assert got["metrics"]["mean_class"] == pytest.approx(200 / 3)
  assert got["chance"]["top1"] == pytest.approx(200 / 9)
  said = got["protocol"]["test classes unknown in training (counted as wrong)"]
  assert said == 1
  assert got["protocol"]["test clips of unknown classes"] == 4


def test_rare_classes_do_not_stop_the_probe():
  rng = np.random.default_rng(5)
  features, labels = clips(rng, 6, 3, 0.05)
  labels[0] = "once"
  got = recognition.linear_probe(features, labels, features, labels, seed=0)
  assert "without 1 classes" in got["protocol"]["regularisation"]
  one_each = features[::6], labels[1::6]
  got = recognition.linear_probe(*one_each, features, labels, seed=0)
  assert "not chosen" in got["protocol"]["regularisation"]


def test_mean_class_weighs_classes_not_clips():
  hits = {"top1": np.array([1, 1, 1, 0], bool)}
  of_class = np.array([0, 0, 0, 1])
  got = recognition.accuracies(hits, of_class)
  assert got == {"top1": 75, "mean_class": 50}


def test_wilson_known_values():
  # Newcombe (Statistics in Medicine 1998), table I, method 3.
  assert recognition.wilson(81, 263) == pytest.approx([25.53, 36.62], abs=0.01)
  assert recognition.wilson(15, 148) == pytest.approx([6.24, 16.05], abs=0.01)
  assert recognition.wilson(0, 20) == pytest.approx([0, 16.11], abs=0.01)


def test_bad_input_is_named():
  rng = np.random.default_rng(6)
  features, labels = clips(rng, 3, 2)
  with pytest.raises(UserError, match="6 test clips but 5 labels"):
    recognition.linear_probe(features, labels, features, labels[1:], seed=0)
  with pytest.raises(UserError, match="1 training clips have no label"):
    recognition.linear_probe(
      features, ["", *labels[1:]], features, labels, seed=0
    )
  with pytest.raises(UserError, match="two classes"):
    recognition.linear_probe(features, ["a"] * 6, features, labels, seed=0)
  with pytest.raises(UserError, match="NaN"):
    recognition.linear_probe(
      features * np.nan, labels, features, labels, seed=0
    )
