"""A study of made-up numbers, and their means by plain loops."""

import itertools
import json
import math
from pathlib import Path

import numpy as np

from benchmarks.noise_study.collect import collect as collect_runs
from launch.expand import expand, load

STUDY = """
import importlib

METHODS = ("infonce", "cotrain", "rince", "cali_nce", "oracle")
NOISE_RATES = (0.0, 0.4)
NUM_SEEDS = 3
CORPORA = {
  "shapes": {
    "module": "calince_jax.data.synthetic",
    "flags": {"num_clips": 8},
    "packages": (),
    "prepare": {},
    "config": {},
  },
}


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
  for seed in range(NUM_SEEDS):
    for method in ("cotrain", "cali_nce", "oracle"):
      yield {
        "config_argument": method,
        "data.mismatch": 0.4,
        "data.mismatch_kind": "near",
        "data.mismatch_seed": seed,
        "seed": seed,
      }
"""
METHODS = ("infonce", "cotrain", "rince", "cali_nce", "oracle")
LEVEL = dict(zip(METHODS, (10.0, 20.0, 25.0, 38.0, 40.0), strict=True))
KEYS = [f"{way}_R@{k}" for way in ("t2v", "v2t") for k in (1, 5, 10)]
STEPS = (10, 20, 30)


def make_study(tmp_path: Path):
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
  info = {"splits": splits, "num_pairs": 150, "labels": ["up"]}
  (tmp_path / "data/dataset.json").write_text(json.dumps(info))
  return load(str(path)), str(path)


def runs_of(study, out: Path, shared=()):
  data = str(out.parent / "data")
  return expand(
    study[1],
    {**dict(shared), "data.datasets": data},
    workdir=str(out),
    evaluate="--task=recognition,video_retrieval",
  )


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
      row |= {"noise_rate_low": 0.0, "noise_rate_high": 0.2 * (seed + 1)}
    # Of 8 pairs; seed 2 of cotrain never learns.
    stuck = (method, seed) == ("cotrain", 2)
    row |= {"ln_N": math.log(8), "in_batch_accuracy": 0.2 if stuck else 0.9}
    row |= {"video_collapse": 0.1 * seed, "text_collapse": 0.15}
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
  seed = run.overrides["seed"]
  events = [{"step": 0, "event": "start"}]
  if (run.overrides["config_argument"], seed) != ("cotrain", 2):
    events.append({"step": 10 * (seed + 1), "event": "took_off", "words": "on"})
  lines = "".join(json.dumps(event) + "\n" for event in events)
  (folder / "events.jsonl").write_text(lines)
  (folder / "eval").mkdir()
  level = LEVEL[run.overrides["config_argument"]]
  for task, metric, chance in (
    ("recognition", "top1", 12.5),
    ("video_retrieval", "R@1", 11.0),
  ):
    result = {"metrics": {metric: level + seed}, "chance": {metric: chance}}
    (folder / "eval" / f"{task}.json").write_text(json.dumps(result))


def write_runs(study, out: Path, leave_out=(), shared=()):
  runs = runs_of(study, out, shared)
  for run in runs:
    if run.name not in leave_out:
      o = run.overrides
      key = (o["config_argument"], o["data.mismatch"], o["seed"])
      write_run(run, out, fake_rows(*key))
  return runs


def collect(study, out: Path, runs):
  folder = out.parent
  return collect_runs(
    study[0], runs, out, folder / "data", folder / "docs", "noise_study"
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


def one_bar(summary, words, rate, when):
  (bar,) = (
    bar
    for bar in summary["bars"]
    if words in bar["bar"] and (bar["noise_rate"], bar["when"]) == (rate, when)
  )
  return bar
