import numpy as np
import pytest

from calince_jax.errors import UserError
from calince_jax.evals import calibration_metrics


def test_auc_counts_pairs_and_half_of_ties():
  rng = np.random.default_rng(0)
  score = rng.integers(0, 5, 40).astype(np.float32)
  matched = rng.integers(0, 2, 40)
  wins = [
    (a > b) + 0.5 * (a == b)
    for a in score[matched == 1]
    for b in score[matched == 0]
  ]
  got = calibration_metrics.calibration_report(np.full(40, 0.5), score, matched)
  assert got["metrics"]["auc"] == pytest.approx(np.mean(wins))
  assert got["chance"] == {"auc": 0.5}
  reverse = calibration_metrics.calibration_report(
    np.full(40, 0.5), -score, matched
  )
  assert reverse["metrics"]["auc"] == pytest.approx(1 - np.mean(wins))


def test_ece_by_a_plain_loop():
  rng = np.random.default_rng(1)
  confidence = np.append(rng.random(500), [0.0, 1.0])
  matched = (rng.random(502) < confidence**2).astype(int)
  want = 0.0
  for b in range(15):
    inside = [
      i
      for i, c in enumerate(confidence)
      if b / 15 <= c < (b + 1) / 15 or (b == 14 and c == 1)
    ]
    gap = np.mean(confidence[inside]) - np.mean(matched[inside])
    want += len(inside) / 502 * abs(gap)
  got = calibration_metrics.calibration_report(confidence, confidence, matched)
  assert got["metrics"]["ece"] == pytest.approx(want)
  assert sum(row["count"] for row in got["reliability"]) == 502
  rate = got["metrics"]["noise_rate_true"]
  assert rate == pytest.approx(1 - matched.mean())


def test_a_calibrated_confidence_has_a_small_ece_and_a_wrong_one_has_not():
  rng = np.random.default_rng(2)
  confidence = rng.random(20000)
  matched = (rng.random(20000) < confidence).astype(int)
  good = calibration_metrics.calibration_report(confidence, confidence, matched)
  wrong = calibration_metrics.calibration_report(
    1 - confidence, confidence, matched
  )
  assert good["metrics"]["ece"] < 0.02
  assert wrong["metrics"]["ece"] == pytest.approx(0.5, abs=0.03)
  assert wrong["metrics"]["auc"] == good["metrics"]["auc"]


def test_histogram_splits_by_truth_and_unknown_truth_is_left_out():
  confidence = np.array([0.0, 0.049, 0.5, 0.99, 1.0, 0.31])
  matched = np.array([0, 0, 1, 1, 1, -1], np.int8)
  got = calibration_metrics.calibration_report(confidence, confidence, matched)
  histogram = got["histogram"]
  assert len(histogram["edges"]) == 21
  assert histogram["mismatched"] == [2] + 19 * [0]
  assert histogram["matched"][10] == 1 and histogram["matched"][19] == 2
  assert histogram["unknown"][6] == 1 and sum(histogram["unknown"]) == 1
  assert got["metrics"]["noise_rate_true"] == pytest.approx(2 / 5)
  assert got["metrics"]["mean_confidence_matched"] == pytest.approx(2.49 / 3)
  assert got["metrics"]["auc"] == 1


def test_without_truth_there_is_only_the_histogram():
  confidence = np.linspace(0, 1, 10)
  got = calibration_metrics.calibration_report(
    confidence, confidence, np.full(10, -1)
  )
  assert got["metrics"] == {"mean_confidence": pytest.approx(0.5)}
  assert got["chance"] == {} and got["reliability"] == []
  assert sum(got["histogram"]["unknown"]) == 10


def test_all_matched_has_no_auc():
  got = calibration_metrics.calibration_report(
    np.array([0.5, 1]), np.array([0, 1]), np.ones(2, int)
  )
  assert "auc" not in got["metrics"]
  assert got["metrics"]["ece"] == pytest.approx(0.25)


@pytest.mark.parametrize(
  ("confidence", "alignment_score", "matched", "message"),
  [
    ([1.2], [0], [1], "not in"),
    ([np.nan], [0], [1], "NaN"),
    ([0.5], [0, 1], [1], "same pairs"),
    ([0.5], [0], [2], "1, 0 and -1"),
    ([], [], [], "no pair"),
  ],
)
def test_bad_input_is_named(confidence, alignment_score, matched, message):
  with pytest.raises(UserError, match=message):
    calibration_metrics.calibration_report(
      np.array(confidence), np.array(alignment_score), np.array(matched)
    )


def test_wrong_captions_are_found_below_one_half():
  confidence = np.array([0.1, 0.49, 0.5, 0.9, 0.2, 0.1])
  matched = np.array([0, 1, 0, 1, 0, -1])
  assert calibration_metrics.find_wrong(confidence, matched) == {
    "wrong": 3,
    "flagged": 3,
    "found": 2,
  }
