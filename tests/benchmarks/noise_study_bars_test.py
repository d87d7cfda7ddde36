"""The verdicts of the noise study follow from its numbers."""

import json

import noise_study_fakes as fakes
import pytest

from benchmarks.noise_study import bars


@pytest.fixture
def study(tmp_path):
  """The module of the fake study, and its path."""
  return fakes.make_study(tmp_path)


def test_bars_are_judged_from_the_numbers(study, tmp_path):
  out = tmp_path / "out"
  runs = fakes.write_runs(study, out)
  cost = {"cores": 1, "seconds_per_step": {}}
  cost["seconds_per_step"] = {
    "infonce": [1.0, 2.0, 1.0],
    "cotrain": [2.0, 4.0, 2.0],
    "cali_nce": [2.1, 4.6, 2.2],
  }
  (out / "cost.json").write_text(json.dumps(cost))
  summary = fakes.collect(study, out, runs)
  for point in ("end", "selected"):
    assert fakes.one_bar(summary, "mean R@1: cali", "0.4", point)["met"] is True
    assert fakes.one_bar(summary, "above 0", "0.4", point)["met"] is True
    assert fakes.one_bar(summary, "covers 0", "0", point)["met"] is True
    best = fakes.one_bar(summary, "every other", "0.4", point)
    assert best["met"] is True and "rince" in best["number"]
  closes = fakes.one_bar(summary, "at least 75 %", "0.4", "end")
  assert closes["met"] is True
  assert fakes.one_bar(summary, "AUC of the score", "0.4", "end")["met"] is True
  # 0.995 -> 0.99 - 0.002 of the worst seed.
  fall = fakes.one_bar(summary, "AUC never", "0.4", "along training")
  assert fall["number"] == "0.0070" and fall["met"] is True
  assert fakes.one_bar(summary, "ECE", "0.4", "end")["number"] == "0.0200"
  rate = fakes.one_bar(summary, "noise rate", "0.4", "end")
  assert rate["number"] == "0.0200" and rate["met"] is True
  step = fakes.one_bar(summary, "a step costs", "", "")
  assert step["number"] == "1.100 (1.050 to 1.150)" and step["met"] is False


def test_bars_that_are_not_met_say_so(study, tmp_path, monkeypatch):
  monkeypatch.setitem(fakes.LEVEL, "cali_nce", 15.0)
  out = tmp_path / "out"
  summary = fakes.collect(study, out, fakes.write_runs(study, out))
  for words, rate in {
    "mean R@1: cali": "0.4",
    "above 0": "0.4",
    "covers 0": "0",
    "at least 75 %": "0.4",
    "every other": "0.4",
  }.items():
    assert fakes.one_bar(summary, words, rate, "end")["met"] is False
  text = (tmp_path / "docs/results.md").read_text()
  assert "| **no** |" in text and "| `rince` | 3 | **2" in text


def test_rivals_are_all_losses_but_ours_and_the_oracle():
  methods = ("infonce", "cotrain", "cali_nce", "cali_score", "gce", "oracle")
  assert bars.rivals(methods) == ["infonce", "cotrain", "gce"]
