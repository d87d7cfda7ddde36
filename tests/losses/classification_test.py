"""The cross entropy of classes, against a plain loop."""

import numpy as np

from calince_jax.losses import classification


def test_the_loss_is_that_of_a_loop_over_the_known_clips():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(6, 4)).astype(np.float32)
  label = np.array([2, -1, 0, 3, -1, 1], np.int32)
  smoothing, expected, right = 0.1, [], []
  for x, y in zip(logits.astype(np.float64), label, strict=True):
    if y < 0:
      continue
    log_p = x - np.log(np.exp(x).sum())
    target = np.full(4, smoothing / 4)
    target[y] += 1 - smoothing
    expected.append(-(target * log_p).sum())
    right.append(x.argmax() == y)
  loss, accuracy = classification.loss(logits, label, smoothing)
  np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-6)
  np.testing.assert_allclose(accuracy, np.mean(right), rtol=1e-6)


def test_without_a_known_class_there_is_no_loss():
  loss, accuracy = classification.loss(
    np.ones((3, 2), np.float32), np.full(3, -1, np.int32), 0.0
  )
  assert loss == 0 and accuracy == 0
