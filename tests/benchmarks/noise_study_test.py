"""The noise study: order, selection, statistics, verdicts, what is missing."""

import csv
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT, TINY_CONFIG
from scipy import stats

from benchmarks import (
  noise_study,
  noise_study_bars,
  noise_study_collect,
  noise_study_figures,
  noise_study_runs,
  noise_study_statistics,
)
from calince_jax.errors import UserError
from launch.expand import expand, load

STUDY = """
import importlib

METHODS = ("infonce", "cotrain", "rince", "cali_nce", "oracle")
NOISE_RATES = (0.0, 0.4)
NUM_SEEDS = 3
CORPUS = {"num_clips": 8}
PREPARE = {}


def get_config(method="cali_nce"):
  name = {"rince": "infonce", "oracle": "cotrain"}.get(method, method)
  return importlib.import_module(f"configs.{name}").get_config()


def sweep():
  for rate in NOISE_RATES:
    for method in METHODS:
      for seed in range(NUM_SEEDS):
        yield {
          "config_argument": method,
          "data.mismatch": rate,
          "data.mismatch_seed": seed,
          "seed": seed,
        }
"""
METHODS = ("infonce", "cotrain", "rince", "cali_nce", "oracle")
LEVEL = dict(zip(METHODS, (10.0, 20.0, 25.0, 38.0, 40.0), strict=True))
KEYS = [f"{way}_R@{k}" for way in ("t2v", "v2t") for k in (1, 5, 10)]
STEPS = (10, 20, 30)


@pytest.fixture
def study(tmp_path):
  """The fake study's module and its path, beside docs and a data set."""
  path = tmp_path / "study.py"
  path.write_text(STUDY)
  (tmp_path / "docs").mkdir()
  (tmp_path / "docs/results.md").write_text(
    "before\n<!-- noise_study -->\nformer\n<!-- /noise_study -->\nafter\n"
  )
  (tmp_path / "data").mkdir()
  counts = {"train": 80, "val": 20, "test": 50}
  splits = {name: {"clips": n, "pairs": n} for name, n in counts.items()}
  info = {"splits": splits, "num_pairs": 150}
  (tmp_path / "data/dataset.json").write_text(json.dumps(info))
  return load(str(path)), str(path)


def runs_of(study, out: Path):
  data = str(out.parent / "data")
  return expand(study[1], {"data.datasets": data}, workdir=str(out))


def fake_rows(method: str, rate: float, seed: int) -> list[dict]:
  """Evaluations with known numbers; in between, rows without one."""
  rng = np.random.default_rng([METHODS.index(method), int(10 * rate), seed])
  rows = []
  for i, step in enumerate(STEPS):
    rows.append({"step": step - 5, "loss": 1.0})
    row = {"step": step, "loss": 1.0, "noise_rate": math.nan}
    for split, key in itertools.product(("val", "test"), KEYS):
      row[f"{split}/{key}"] = LEVEL[method] + i + rng.normal()
    if method in ("cali_nce", "cotrain"):
      row["noise_rate"] = rate + 0.01 * (seed + 1)
      row |= {"pairs/ece": 0.04 - 0.01 * i, "pairs/weight_matched": 1.5}
    if method in ("cali_nce", "cotrain") and rate:
      row["pairs/auc"] = (0.90, 0.995, 0.99 - 0.001 * seed)[i]
    rows.append(row)
  return rows


def write_run(run, out: Path, rows, *, total_steps=30) -> None:
  folder = out / run.name
  folder.mkdir(parents=True)
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "metrics.jsonl").write_text(lines)
  config = {
    "batch_size": 8,
    "total_steps": total_steps,
    "evaluate_every": 10,
    "evaluate_splits": "val,test",
  }
  document = {"format_version": 1, "config": config}
  (folder / "config.json").write_text(json.dumps(document))
  done = {"commands": run.commands, "exit_status": 0, "seconds": 60.0}
  (folder / "done.json").write_text(json.dumps(done))


def write_runs(study, out: Path, leave_out=()):
  runs = runs_of(study, out)
  for run in runs:
    if run.name not in leave_out:
      o = run.overrides
      key = (o["config_argument"], o["data.mismatch"], o["seed"])
      write_run(run, out, fake_rows(*key))
  return runs


def collect(study, out: Path, runs):
  folder = out.parent
  return noise_study_collect.collect(
    study[0], runs, out, folder / "data", folder / "docs"
  )


def plain_recall(row, split, k=1):
  return (row[f"{split}/t2v_R@{k}"] + row[f"{split}/v2t_R@{k}"]) / 2


def plain_point(method, rate, seed, point):
  """The row of the end, or of the best val, by a plain loop."""
  rows = [r for r in fake_rows(method, rate, seed) if "val/t2v_R@1" in r]
  if point == "end":
    return rows[-1]
  best = rows[0]
  for row in rows[1:]:
    if plain_recall(row, "val") > plain_recall(best, "val"):
      best = row
  return best


@pytest.mark.parametrize("point", ["end", "selected"])
def test_means_and_paired_intervals_equal_plain_ones(study, tmp_path, point):
  out = tmp_path / "out"
  summary = collect(study, out, write_runs(study, out))
  for method in METHODS:
    mine = summary["quality"]["0.4"][method][point]
    for name, of in {
      "R@5": lambda row: plain_recall(row, "test", 5),
      "v2t_R@10": lambda row: row["test/v2t_R@10"],
    }.items():
      x, base = (
        [of(plain_point(m, 0.4, seed, point)) for seed in range(3)]
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
    return row | {f"test/{key}": test for key in KEYS} | {"step": step}

  rows = [row(1, 5.0, 90.0), row(2, 7.0, 10.0), row(3, 7.0, 99.0), row(4, 6, 3)]
  assert noise_study_runs.selected(rows)["step"] == 2
  result = noise_study_runs.Result("infonce", 0.4, 0, None, rows)
  values = noise_study_runs.measure(result)
  assert values["selected_step"] == 2
  assert values["selected/R@1"] == 10.0 and values["end/R@1"] == 3
  # Without any test numbers the choice is the same.
  blind = [{k: v for k, v in r.items() if "test" not in k} for r in rows]
  assert noise_study_runs.selected(blind)["step"] == 2


def test_the_fall_is_from_the_best_so_far():
  base = {f"{s}/{key}": 1.0 for s in ("val", "test") for key in KEYS}
  aucs = (0.9, 0.97, 0.95, 0.99, None, 0.98)
  eces = (0.1, 0.02, 0.05, 0.01, 0.02, math.nan)
  rows = [
    base | {"step": i, "pairs/auc": a, "pairs/ece": e}
    for i, (a, e) in enumerate(zip(aucs, eces, strict=True))
  ]
  result = noise_study_runs.Result("cali_nce", 0.4, 0, None, rows)
  values = noise_study_runs.measure(result)
  assert values["auc_fall"] == pytest.approx(0.02)  # 0.97 -> 0.95
  assert values["ece_rise"] == pytest.approx(0.03)  # 0.02 -> 0.05
  names = ("auc_first", "auc_best", "auc_end", "ece_best", "ece_end")
  assert [values[name] for name in names] == [0.9, 0.99, 0.98, 0.01, 0.02]
  assert "noise_rate_estimate" not in values


def test_closing_and_its_bootstrap():
  c, o = {0: 10.0, 1: 12.0, 2: 11.0}, {0: 30.0, 1: 31.0, 2: 33.0}
  m = {0: 25.0, 1: 20.0, 2: 31.0, 7: 99.0}  # seed 7 has no partners
  found = noise_study_statistics.closing(m, c, o)
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
  assert noise_study_statistics.closing(m, o, c) is None
  torn = noise_study_statistics.closing(m, c, {0: 5.0, 1: 31.0, 2: 33.0})
  assert torn["share"] > 0 and torn["low"] is None
  alone = noise_study_statistics.closing({0: 20.0}, {0: 10.0}, {0: 30.0})
  assert alone == {"share": 50.0, "low": None, "high": None, "seeds": 1}


def test_one_seed_has_no_spread():
  found = noise_study_statistics.paired_difference({0: 3.0}, {0: 1.0, 1: 9.0})
  assert found == {"difference": 2.0, "low": None, "high": None, "seeds": 1}
  assert noise_study_statistics.spread({0: 3.0})["sd"] is None


def one_bar(summary, words, rate, when):
  (bar,) = (
    bar
    for bar in summary["bars"]
    if words in bar["bar"] and (bar["noise_rate"], bar["when"]) == (rate, when)
  )
  return bar


def test_bars_are_judged_from_the_numbers(study, tmp_path):
  out = tmp_path / "out"
  runs = write_runs(study, out)
  cost = {"cores": 1, "seconds_per_step": {}}
  cost["seconds_per_step"] = {
    "infonce": [1.0, 2.0, 1.0],
    "cotrain": [2.0, 4.0, 2.0],
    "cali_nce": [2.1, 4.6, 2.2],
  }
  (out / "cost.json").write_text(json.dumps(cost))
  summary = collect(study, out, runs)
  for point in ("end", "selected"):
    assert one_bar(summary, "mean R@1: cali", "0.4", point)["met"] is True
    assert one_bar(summary, "above 0", "0.4", point)["met"] is True
    assert one_bar(summary, "covers 0", "0", point)["met"] is True
    assert one_bar(summary, "at least 80 %", "0.4", point)["met"] is True
    best = one_bar(summary, "every other", "0.4", point)
    assert best["met"] is True and "rince" in best["number"]
  assert one_bar(summary, "AUC of the score", "0.4", "end")["met"] is True
  # 0.995 -> 0.99 - 0.002 of the worst seed.
  fall = one_bar(summary, "AUC never", "0.4", "along training")
  assert fall["number"] == "0.0070" and fall["met"] is True
  assert one_bar(summary, "ECE", "0.4", "end")["number"] == "0.0200"
  rate = one_bar(summary, "noise rate", "0.4", "end")
  assert rate["number"] == "0.0200" and rate["met"] is True
  step = one_bar(summary, "a step costs", "", "")
  assert step["number"] == "1.100 (1.050 to 1.150)" and step["met"] is True


def test_bars_that_are_not_met_say_so(study, tmp_path, monkeypatch):
  monkeypatch.setitem(LEVEL, "cali_nce", 15.0)
  out = tmp_path / "out"
  summary = collect(study, out, write_runs(study, out))
  for words, rate in {
    "mean R@1: cali": "0.4",
    "above 0": "0.4",
    "covers 0": "0",
    "at least 80 %": "0.4",
    "every other": "0.4",
  }.items():
    assert one_bar(summary, words, rate, "end")["met"] is False
  text = (tmp_path / "docs/results.md").read_text()
  assert "| **no** |" in text and "| `rince` | 3 | **2" in text


def test_missing_runs_are_said(study, tmp_path):
  out = tmp_path / "out"
  names = [run.name for run in runs_of(study, out)]
  gone = [n for n in names if n.startswith("oracle,mismatch=0.4")]
  gone += [n for n in names if n.startswith("rince,mismatch=0.4")]
  runs = write_runs(study, out, leave_out=gone)
  # One that has been stopped counts as missing, too.
  stopped = "infonce,mismatch=0.4,mismatch_seed=2,seed=2"
  metrics = out / stopped / "metrics.jsonl"
  metrics.write_text("".join(metrics.read_text().splitlines(True)[:4]))
  summary = collect(study, out, runs)
  assert set(summary["runs"]["missing"]) == {*gone, stopped}
  assert summary["runs"]["finished"] == 30 - 7
  closes = one_bar(summary, "at least 80 %", "0.4", "end")
  assert closes["met"] is None and closes["number"] == "not run: oracle"
  best = one_bar(summary, "every other", "0.4", "end")
  assert best["met"] is None and best["number"] == "not run: rince"
  cost = one_bar(summary, "a step costs", "", "")
  assert cost["met"] is None and "not run" in cost["number"]
  assert summary["quality"]["0.4"]["infonce"]["end"]["R@1"]["seeds"] == 2
  text = (tmp_path / "docs/results.md").read_text()
  assert "**7 runs are missing**" in text and stopped in text
  assert "23 of 30 runs" in text


def test_what_is_written(study, tmp_path):
  out = tmp_path / "out"
  runs = write_runs(study, out)
  summary = collect(study, out, runs)
  text = (tmp_path / "docs/results.md").read_text()
  assert text.startswith("before\n<!-- noise_study -->\n30 of 30 runs")
  assert (
    text.endswith("<!-- /noise_study -->\nafter\n") and "former" not in text
  )
  assert "Chance: t2v_R@1 2.00," in text
  # The oracle is never bold; of the others the best is.
  (row,) = re.findall(r"^\| `oracle` \| 3 .*", text, re.M)[:1]
  assert "**" not in row
  assert re.search(r"^\| `cali_nce` \| 3 \| \*\*\d+\.\d\d\*\* ± ", text, re.M)
  tables = re.findall(r"Noise rate 0.4:\n\n(.*?)\n\n", text, re.DOTALL)
  order = re.findall(r"^\| `(\w+)`", tables[0], re.M)
  assert tuple(order) == METHODS
  with (out / "table.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 30 and rows[0]["method"] == "infonce"
  one = next(
    r
    for r in rows
    if (r["method"], r["noise_rate"], r["seed"]) == ("cotrain", "0.4", "1")
  )
  want = plain_recall(plain_point("cotrain", 0.4, 1, "selected"), "test")
  assert float(one["selected/R@1"]) == pytest.approx(want)
  assert json.loads((out / "summary.json").read_text()) == json.loads(
    json.dumps(summary)
  )


def test_figures_are_the_same_again_and_name_their_methods(study, tmp_path):
  out = tmp_path / "out"
  summary = collect(study, out, write_runs(study, out))
  names = ("rates", "score", "methods")
  for name in names:
    first = tmp_path / f"docs/figures/noise_study_{name}.svg"
    noise_study_figures.draw(summary, tmp_path / "again")
    again = tmp_path / f"again/noise_study_{name}.svg"
    assert first.read_bytes() == again.read_bytes()
    text = " ".join(ElementTree.parse(first).getroot().itertext())
    assert "cali_nce" in text and "cotrain" in text
    assert f"figures/{first.name}" in (tmp_path / "docs/results.md").read_text()
  changed = json.loads(json.dumps(summary))
  changed["quality"]["0.4"]["rince"]["end"]["R@1"]["mean"] += 5
  noise_study_figures.draw(changed, tmp_path / "changed")
  file = "noise_study_methods.svg"
  kept = (tmp_path / "again" / file).read_bytes()
  assert (tmp_path / "changed" / file).read_bytes() != kept


def test_runs_of_different_length_are_not_mixed(study, tmp_path):
  out = tmp_path / "out"
  runs = write_runs(study, out)
  config = out / runs[3].name / "config.json"
  document = json.loads(config.read_text())
  document["config"]["batch_size"] = 9
  config.write_text(json.dumps(document))
  with pytest.raises(UserError, match=f"{re.escape(runs[3].name)} has"):
    collect(study, out, runs)


def test_order_is_the_main_rate_first_then_whole_seeds(study, tmp_path):
  module, runs = study[0], runs_of(study, tmp_path / "out")
  chosen = noise_study.choose(module, runs, ["cotrain", "infonce"], [], 2)
  assert [run.name for run in chosen] == [
    f"{method},mismatch={rate},mismatch_seed={seed},seed={seed}"
    for rate in (0.4, 0.0)
    for seed in (0, 1)
    for method in ("infonce", "cotrain")
  ]
  assert len(noise_study.choose(module, runs, METHODS, ["0"], None)) == 15
  for words, message in (
    ((["magic"], [], None), "--methods: the study has no 'magic'"),
    ((METHODS, ["0.3"], None), "--noise_rates: .* no 0.3"),
    ((METHODS, [], 4), "--num_seeds: .* no 3"),
  ):
    with pytest.raises(UserError, match=message):
      noise_study.choose(module, runs, *words)


# Few steps are run: the compiler need not try hard.
QUICK = {
  "XLA_FLAGS": "--xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true"
}


def command(*words: str, module="noise_study") -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", f"benchmarks.{module}", *words],
    cwd=ROOT,
    env=os.environ | QUICK,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def test_command_skips_the_finished_and_starts_the_missing(study, tmp_path):
  """The data set is not whole, so that what is started fails at once."""
  out, missing = tmp_path / "out", "cotrain,mismatch=0.4,mismatch_seed=1,seed=1"
  write_runs(study, out, leave_out=[missing])
  words = (
    f"--config={study[1]}",
    f"--out={out}",
    f"--data={tmp_path / 'data'}",
    f"--docs={tmp_path / 'docs'}",
    "--num_workers=1",
  )
  done = command(*words, "--noise_rates=0.4")
  assert done.returncode == 1, done.stderr
  assert "15 of the 30 runs" in done.stdout
  assert done.stdout.count("finished already") == 14
  assert f"start  {missing}, 0 waiting" in done.stdout
  assert f"FAILED {missing}" in done.stdout
  log = (out / missing / "sweep.log").read_text()
  assert f"--config={study[1]}:cotrain" in log
  assert "--config.data.mismatch=0.4" in log
  assert "29 of 30 runs are finished" in done.stdout
  assert "**1 runs are missing**" in (tmp_path / "docs/results.md").read_text()
  # Collecting needs no run.
  done = command(*words, "--collect")
  assert done.returncode == 0 and "start" not in done.stdout, done.stderr


def test_command_without_any_run_is_one_clear_error(study, tmp_path):
  done = command(
    f"--config={study[1]}", f"--out={tmp_path / 'out'}", "--collect"
  )
  assert done.returncode == 2 and "no finished run" in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_rivals_are_all_losses_but_ours_and_the_oracle():
  methods = ("infonce", "cotrain", "cali_nce", "cali_score", "gce", "oracle")
  assert noise_study_bars.rivals(methods) == ["infonce", "cotrain", "gce"]


def test_ratios_are_taken_within_a_round():
  seconds = {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 12.0]}
  found = noise_study_statistics.ratios(seconds, "a")
  assert found["b"] == {"median": 2.0, "min": 1.0, "max": 3.0}
  assert found["a"] == {"median": 1.0, "min": 1.0, "max": 1.0}


REAL = """
import importlib

METHODS = ("cotrain",)
NOISE_RATES = (0.4,)
NUM_SEEDS = 1
CORPUS = {
  "num_clips": 24,
  "num_val": 4,
  "num_test": 8,
  "mismatch": 0.0,
  "size": 32,
  "max_objects": 1,
}
PREPARE = {"short_side": 32, "num_workers": 1}


def get_config(method="cotrain"):
  config = importlib.import_module(f"configs.{method}").get_config()
  config.update_from_flattened_dict(TINY)
  return config


def sweep():
  for method in METHODS:
    for rate in NOISE_RATES:
      yield {
        "config_argument": method,
        "data.mismatch": rate,
        "data.mismatch_seed": 0,
        "seed": 0,
      }
"""
TINY = TINY_CONFIG | {
  "batch_size": 8,
  "data.text_length": 24,
  "total_steps": 4,
  "evaluate_every": 2,
  "evaluate_splits": "val,test",
}


@pytest.fixture
def real_study(tmp_path):
  """One method of a tiny model; docs with marks."""
  path = tmp_path / "study.py"
  path.write_text(f"TINY = {TINY!r}\n{REAL}")
  (tmp_path / "docs").mkdir()
  (tmp_path / "docs/results.md").write_text(
    "<!-- noise_study -->\n<!-- /noise_study -->\n"
  )
  return str(path)


def test_a_tiny_study_from_nothing_to_its_section(real_study, tmp_path):
  out = tmp_path / "out"
  words = (f"--config={real_study}", f"--out={out}", f"--docs={tmp_path}/docs")
  done = command(*words, "--num_workers=1")
  assert done.returncode == 0, done.stdout + done.stderr
  assert "1 of 1 runs are finished" in done.stdout
  text = (tmp_path / "docs/results.md").read_text()
  assert "8 test, 24 train, 4 val" in text
  assert re.search(r"^\| `cotrain` \| 1 \| \*?\*?\d", text, re.M)
  summary = json.loads((out / "summary.json").read_text())
  score = summary["score"]["0.4"]["cotrain"]
  assert 0 <= score["auc_end"]["mean"] <= 1


def test_cost_is_timed_in_turns(real_study, tiny_dataset, tmp_path):
  done = command(
    f"--config={real_study}",
    "--methods=infonce,cotrain",
    f"--out={tmp_path / 'out'}",
    f"--data={tiny_dataset}",
    "--rounds=3",
    "--steps=1",
    module="noise_study_cost",
  )
  assert done.returncode == 0, done.stderr
  cost = noise_study_collect.read_cost(tmp_path / "out")
  seconds = cost["seconds_per_step"]
  assert list(seconds) == ["infonce", "cotrain"]
  assert all(len(s) == 3 and min(s) > 0 for s in seconds.values())
  assert cost["against"]["infonce"]["infonce"]["median"] == 1.0
