"""Selection, means, paired intervals, shares: against plain loops."""

import itertools
import math

import noise_study_fakes as fakes
import numpy as np
import pytest
from scipy import stats

from benchmarks.noise_study import runs, statistics


@pytest.fixture
def study(tmp_path):
  """The module of the fake study, and its path."""
  return fakes.make_study(tmp_path)


@pytest.mark.parametrize("point", ["end", "selected"])
def test_means_and_paired_intervals_equal_plain_ones(study, tmp_path, point):
  out = tmp_path / "out"
  summary = fakes.collect(study, out, fakes.write_runs(study, out))
  for method in fakes.METHODS:
    mine = summary["quality"]["0.4"][method][point]
    for name, of in {
      "R@5": lambda row: fakes.plain_recall(row, "test", 5),
      "v2t_R@10": lambda row: row["test/v2t_R@10"],
    }.items():
      x, base = (
        [of(fakes.plain_point(m, 0.4, seed, point)) for seed in range(3)]
        for m in (method, "cotrain")
      )
      mean = sum(x) / 3
      sd = math.sqrt(sum((a - mean) ** 2 for a in x) / 2)
      assert mine[name]["mean"] == pytest.approx(mean)
      assert mine[name]["sd"] == pytest.approx(sd)
      assert mine[name]["seeds"] == 3
      found = mine[name]["against_baseline"]
      d = [a - b for a, b in zip(x, base, strict=True)]
      assert found["difference"] == pytest.approx(sum(d) / 3)
      if method != "cotrain":
        test = stats.ttest_rel(x, base).confidence_interval(0.95)
        assert (found["low"], found["high"]) == pytest.approx(tuple(test))


def test_selection_looks_at_val_and_takes_the_first_of_equals():
  def row(step, val, test):
    row = {
      f"val/{way}_R@1": val + bias for way, bias in (("t2v", 1), ("v2t", -1))
    }
    return row | {f"test/{key}": test for key in fakes.KEYS} | {"step": step}

  rows = [row(1, 5.0, 90.0), row(2, 7.0, 10.0), row(3, 7.0, 99.0), row(4, 6, 3)]
  assert runs.selected(rows)["step"] == 2
  result = runs.Result("infonce", 0.4, 0, None, rows)
  values = runs.measure(result)
  assert values["selected_step"] == 2
  assert values["selected/R@1"] == 10.0 and values["end/R@1"] == 3
  # Without any test numbers the choice is the same.
  blind = [{k: v for k, v in r.items() if "test" not in k} for r in rows]
  assert runs.selected(blind)["step"] == 2


def test_the_fall_is_from_the_best_so_far():
  base = {f"{s}/{key}": 1.0 for s in ("val", "test") for key in fakes.KEYS}
  aucs = (0.9, 0.97, 0.95, 0.99, None, 0.98)
  eces = (0.1, 0.02, 0.05, 0.01, 0.02, math.nan)
  rows = [
    base | {"step": i, "pairs/auc": a, "pairs/ece": e}
    for i, (a, e) in enumerate(zip(aucs, eces, strict=True))
  ]
  result = runs.Result("cali_nce", 0.4, 0, None, rows)
  values = runs.measure(result)
  assert values["auc_fall"] == pytest.approx(0.02)  # 0.97 -> 0.95
  assert values["ece_rise"] == pytest.approx(0.03)  # 0.02 -> 0.05
  names = ("auc_first", "auc_best", "auc_end", "ece_best", "ece_end")
  assert [values[name] for name in names] == [0.9, 0.99, 0.98, 0.01, 0.02]
  assert "noise_rate_estimate" not in values


def test_closing_and_its_bootstrap():
  c, o = {0: 10.0, 1: 12.0, 2: 11.0}, {0: 30.0, 1: 31.0, 2: 33.0}
  m = {0: 25.0, 1: 20.0, 2: 31.0, 7: 99.0}  # seed 7 has no partners
  found = statistics.closing(m, c, o)
  mean = {s: (m[s], c[s], o[s]) for s in c}
  shares = []
  for seeds in itertools.product(range(3), repeat=3):  # every resample
    a, b, d = (sum(mean[s][i] for s in seeds) for i in range(3))
    shares.append(100 * (a - b) / (d - b))
  whole = 100 * (76 - 33) / (94 - 33)
  assert found["share"] == pytest.approx(whole) and found["seeds"] == 3
  bounds = np.percentile(shares, [2.5, 97.5], method="inverted_cdf")
  assert (found["low"], found["high"]) == pytest.approx(tuple(bounds))
  # No way to go, no share; a way that a resample loses, no interval.
  assert statistics.closing(m, o, c) is None
  torn = statistics.closing(m, c, {0: 5.0, 1: 31.0, 2: 33.0})
  assert torn["share"] > 0 and torn["low"] is None
  alone = statistics.closing({0: 20.0}, {0: 10.0}, {0: 30.0})
  assert alone == {"share": 50.0, "low": None, "high": None, "seeds": 1}


def test_one_seed_has_no_spread():
  found = statistics.paired_difference({0: 3.0}, {0: 1.0, 1: 9.0})
  assert found == {"difference": 2.0, "low": None, "high": None, "seeds": 1}
  assert statistics.spread({0: 3.0})["sd"] is None


def test_ratios_are_taken_within_a_round():
  seconds = {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 12.0]}
  found = statistics.ratios(seconds, "a")
  assert found["b"] == {"median": 2.0, "min": 1.0, "max": 3.0}
  assert found["a"] == {"median": 1.0, "min": 1.0, "max": 1.0}
