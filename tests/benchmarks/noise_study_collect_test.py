"""What the noise study writes, also where runs are missing."""

import csv
import json
import re
from xml.etree import ElementTree

import noise_study_fakes as fakes
import pytest

from benchmarks.noise_study import collect, figures
from calince_jax.errors import UserError


@pytest.fixture
def study(tmp_path):
  """The module of the fake study, and its path."""
  return fakes.make_study(tmp_path)


def test_missing_runs_are_said(study, tmp_path):
  out = tmp_path / "out"
  names = [run.name for run in fakes.runs_of(study, out)]
  gone = [n for n in names if n.startswith("oracle,mismatch=0.4,mismatch_s")]
  gone += [n for n in names if n.startswith("rince,mismatch=0.4,mismatch_s")]
  runs = fakes.write_runs(study, out, leave_out=gone)
  # One that has been stopped counts as missing, too.
  stopped = "infonce,mismatch=0.4,mismatch_seed=2,seed=2"
  metrics = out / stopped / "metrics.jsonl"
  metrics.write_text("".join(metrics.read_text().splitlines(True)[:4]))
  summary = fakes.collect(study, out, runs)
  assert set(summary["runs"]["missing"]) == {*gone, stopped}
  assert summary["runs"]["finished"] == 39 - 7
  closes = fakes.one_bar(summary, "at least 75 %", "0.4", "end")
  assert closes["met"] is None and closes["number"] == "not run: oracle"
  best = fakes.one_bar(summary, "every other", "0.4", "end")
  assert best["met"] is None and best["number"] == "not run: rince"
  cost = fakes.one_bar(summary, "a step costs", "", "")
  assert cost["met"] is None and "not run" in cost["number"]
  assert summary["quality"]["0.4"]["infonce"]["end"]["R@1"]["seeds"] == 2
  text = (tmp_path / "docs/results.md").read_text()
  assert "**7 runs are missing**" in text and stopped in text
  assert "32 of 39 runs" in text
  judged = [bar for bar in summary["bars"] if bar["met"] is not None]
  more = len(summary["bars"]) - len(judged)
  assert f"{more} more need runs that have not been made." in text


def test_where_most_runs_are_missing_those_that_are_there_are_said(
  study, tmp_path
):
  out = tmp_path / "out"
  names = [run.name for run in fakes.runs_of(study, out)]
  gone = [n for n in names if "mismatch=0.4" not in n or "rince" in n]
  fakes.collect(study, out, fakes.write_runs(study, out, leave_out=gone))
  text = (tmp_path / "docs/results.md").read_text()
  assert "at 0.4 `infonce` 3, `cotrain` 3, `cali_nce` 3, `oracle` 3; at" in text
  assert gone[0] not in text


def test_what_is_written(study, tmp_path):
  out = tmp_path / "out"
  runs = fakes.write_runs(study, out)
  summary = fakes.collect(study, out, runs)
  text = (tmp_path / "docs/results.md").read_text()
  assert text.startswith("before\n<!-- noise_study -->\n39 of 39 runs")
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
  assert tuple(order) == fakes.METHODS
  with (out / "table.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 39 and rows[0]["method"] == "infonce"
  one = next(
    r
    for r in rows
    if (r["method"], r["noise_rate"], r["kind"], r["seed"])
    == ("cotrain", "0.4", "uniform", "1")
  )
  want = fakes.plain_recall(
    fakes.plain_point("cotrain", 0.4, 1, "selected"), "test"
  )
  assert float(one["selected/R@1"]) == pytest.approx(want)
  assert json.loads((out / "summary.json").read_text()) == json.loads(
    json.dumps(summary)
  )


def test_figures_are_the_same_again_and_name_their_methods(study, tmp_path):
  out = tmp_path / "out"
  summary = fakes.collect(study, out, fakes.write_runs(study, out))
  names = ("rates", "score", "methods")
  for name in names:
    first = tmp_path / f"docs/figures/noise_study_{name}.svg"
    figures.draw(summary, tmp_path / "again")
    again = tmp_path / f"again/noise_study_{name}.svg"
    assert first.read_bytes() == again.read_bytes()
    text = " ".join(ElementTree.parse(first).getroot().itertext())
    assert "cali_nce" in text and "cotrain" in text
    assert f"figures/{first.name}" in (tmp_path / "docs/results.md").read_text()
  changed = json.loads(json.dumps(summary))
  changed["quality"]["0.4"]["rince"]["end"]["R@1"]["mean"] += 5
  figures.draw(changed, tmp_path / "changed")
  file = "noise_study_methods.svg"
  kept = (tmp_path / "again" / file).read_bytes()
  assert (tmp_path / "changed" / file).read_bytes() != kept


def test_runs_of_different_length_are_not_mixed(study, tmp_path):
  out = tmp_path / "out"
  runs = fakes.write_runs(study, out)
  config = out / runs[3].name / "config.json"
  document = json.loads(config.read_text())
  document["config"]["batch_size"] = 9
  config.write_text(json.dumps(document))
  with pytest.raises(UserError, match=f"{re.escape(runs[3].name)} has"):
    fakes.collect(study, out, runs)


def test_all_tasks_stand_beside_chance_and_co_training(study, tmp_path):
  out = tmp_path / "out"
  summary = fakes.collect(study, out, fakes.write_runs(study, out))
  found = summary["tasks"]["0.4"]["cali_nce"]["recognition"]
  assert found["mean"] == 38.0 + 1 and found["against_baseline"] == {
    "difference": 18.0,
    "low": 18.0,
    "high": 18.0,
    "seeds": 3,
  }
  assert found["closing"]["share"] == pytest.approx(90.0)
  text = (tmp_path / "docs/results.md").read_text()
  assert "| chance | 2.00 | 20.00 | 12.50 | 11.00 |" in text
  assert "39.00 ± 1.00 [+18.00 (+18.00 to +18.00); 90 %]" in text
  assert "Noise rate 0.4 near:" in text


def test_runs_that_did_not_learn_are_counted(study, tmp_path):
  out = tmp_path / "out"
  summary = fakes.collect(study, out, fakes.write_runs(study, out))
  text = (tmp_path / "docs/results.md").read_text()
  # The interval of cotrain holds 0.4 with seeds 1 and 2.
  row = "| 0.4 | `cotrain` | 1 of 3 | 15 (10 to 20) | 0.167 | 2 of 3 |"
  assert row in text
  chance = fakes.one_bar(summary, "at chance", "0.4 near", "end")
  assert chance["met"] is True and chance["number"] == "0%, 33%"
  covered = fakes.one_bar(summary, "true share", "0.4", "end")
  assert covered["met"] is False and covered["number"] == "0.6667"
  worse = fakes.one_bar(summary, "never worse", "0.4 near", "end")
  assert worse["met"] is True


def test_a_page_of_its_own_is_made(study, tmp_path):
  out = tmp_path / "out"
  runs = fakes.write_runs(study, out)
  before = (tmp_path / "docs/results.md").read_text()
  collect.collect(study[0], runs, out, tmp_path / "data", out, "mine")
  text = (out / "results.md").read_text()
  assert text.startswith("<!-- mine -->\n39 of 39 runs")
  assert (out / "figures" / "mine_rates.svg").exists()
  assert (tmp_path / "docs/results.md").read_text() == before
