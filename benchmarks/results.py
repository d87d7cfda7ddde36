"""Writes docs/results.md, and the table in README.md, from run folders.

    bash launch/quickstart.sh
    bash benchmarks/real_clips.sh CLIPS/manifest.csv runs/real
    python -m calince_jax.prepare --manifest=FILES/manifest.csv \
      --out=runs/hard --max_bad_fraction=0.6
    python -m benchmarks.hostile.inputs
    python -m benchmarks.hostile.inputs --folder=FILES --out=runs/hostile_wild
    python -m benchmarks.hostile.settings
    python -m benchmarks.noise_study
    python -m benchmarks.loss_memory    (and the others that it names)
    python -m benchmarks.loss_time
    python -m benchmarks.step
    python -m benchmarks.survival
    python -m benchmarks.plan_all
    python -m benchmarks.results

A section whose folder is not there keeps its former text.
"""

import collections
import csv
import json
import re
from pathlib import Path

from absl import flags

from benchmarks.noise_study import text as noise_study_text
from calince_jax import cli
from calince_jax.errors import UserError
from calince_jax.evals.report import headlines

ROWS = {
  "retrieval": [
    f"{way}_{name}"
    for way in ("t2v", "v2t")
    for name in ("R@1", "R@5", "R@10", "MedR")
  ],
  "video_retrieval": ["R@1", "R@5", "R@10"],
  "recognition": ["top1", "mean_class"],
  "calibration": ["auc", "auc_cosine", "ece", "noise_rate_estimate"],
}


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("quickstart", "runs/quickstart", "of quickstart.sh")
  flags.DEFINE_string("real", "runs/real", "of real_clips.sh")
  flags.DEFINE_string("hard", "runs/hard", "prepared from hostile files")
  hostile = "runs/hostile"
  flags.DEFINE_string("hostile", hostile, "of hostile.inputs")
  flags.DEFINE_string("hostile_wild", f"{hostile}_wild", "of hostile.inputs")
  flags.DEFINE_string("hostile_settings", f"{hostile}_settings", "of that")
  flags.DEFINE_string("loss", "runs/loss", "of loss_memory and loss_time")
  flags.DEFINE_string("plan_all", "runs/plan_all", "of plan_all")
  flags.DEFINE_string("step", "runs/step", "of step")
  flags.DEFINE_string("pipeline", "runs/pipeline", "of pipeline")
  flags.DEFINE_string("survival", "runs/survival", "of survival")
  flags.DEFINE_string(
    "noise_study", "runs/noise_study", "of noise_study; of others + _CORPUS"
  )


def made_table(folder: Path) -> str:
  """The one table in the folder of a benchmark."""
  (path,) = folder.glob("*.md")
  return path.read_text().strip()


def made_tables(folder: Path) -> str:
  """The tables in the folder of a benchmark, by the names of their files."""
  return "\n\n".join(
    path.read_text().strip() for path in sorted(folder.glob("*.md"))
  )


def survival_tables(folder: Path) -> str:
  """The tables of the killed runs, of two processes and of the long run."""
  return "\n\n".join(
    (folder / f"{part}.md").read_text().strip()
    for part in ("kills", "peers", "soak")
  )


def main() -> None:
  """Replaces the text between the marks of each section."""
  F = flags.FLAGS
  sections = {
    "quickstart": (F.quickstart, quickstart),
    "real": (F.real, lambda folder: table(folder / "run")),
    "real_mismatch": (
      str(Path(F.real) / "run_mismatch"),
      mismatch,
    ),
    "hard": (F.hard, ledger),
    "hostile": (F.hostile, made_table),
    "hostile_wild": (F.hostile_wild, made_table),
    "hostile_settings": (F.hostile_settings, made_table),
    **{
      f"noise_study{corpus}": (
        f"{F.noise_study}{corpus}",
        noise_study_text.section,
      )
      for corpus in ("", "_hard", "_grid", "_metaworld")
    },
    "loss": (F.loss, made_tables),
    "step": (F.step, made_tables),
    "pipeline": (F.pipeline, made_tables),
    "survival": (F.survival, survival_tables),
    "plan_all": (F.plan_all, made_table),
  }
  for name, (folder, make) in sections.items():
    if not Path(folder).is_dir():
      print(f"{name}: no {folder}, the text is kept")
      continue
    text = make(Path(folder))
    for file in ("README.md", "docs/results.md"):
      if replace(Path(file), name, text):
        print(f"{name}: written to {file}")


def replace(file: Path, name: str, text: str) -> bool:
  """Puts `text` between `<!-- name -->` and `<!-- /name -->`, if they are."""
  mark = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
  old = file.read_text()
  if not mark.search(old):
    return False
  file.write_text(mark.sub(lambda m: m[1] + text + "\n" + m[2], old))
  return True


def quickstart(folder: Path) -> str:
  """The table of the run, and how long each part took."""
  rows = csv.reader((folder / "times.csv").open())
  times = {name: int(seconds) for name, seconds in rows}
  parts = ", ".join(f"{name} {seconds} s" for name, seconds in times.items())
  total = sum(times.values())
  calibration = folder / "run" / "eval" / "calibration.json"
  found = headlines.wrong_captions(json.loads(calibration.read_text()))
  return (
    f"{table(folder / 'run')}\n\n"
    f"{found}\n\n"
    f"Time: {total // 60} min {total % 60:02d} s ({parts})."
  )


def table(workdir: Path) -> str:
  """Metrics of a run in Markdown, chance beside each, and the protocol."""
  lines = ["| | result | chance |", "|---|---|---|"]
  protocol = {}
  for task, names in ROWS.items():
    path = workdir / "eval" / f"{task}.json"
    if not path.exists():
      raise UserError(f"{path} is missing; run calince_jax.evaluate")
    result = json.loads(path.read_text())
    protocol[task] = result["protocol"]
    known, chance = result["metrics"], result["chance"]
    for name in (name for name in names if name in known):
      if name == "noise_rate_estimate" and "noise_rate_true" not in known:
        continue
      beside = f"{chance[name]:.2f}" if name in chance else ""
      if name == "noise_rate_estimate":
        beside = f"true {known['noise_rate_true']:.2f}"
      if "majority" in result:
        beside += f"; majority class {result['majority'][name]:.2f}"
      interval = ""
      if "intervals" in result and name in result["intervals"]:
        low, high = result["intervals"][name]
        interval = f" ({low:.1f} to {high:.1f})"
      lines.append(
        f"| {task} {name} | {known[name]:.2f}{interval} | {beside} |"
      )
  p, q = protocol["retrieval"], protocol["calibration"]
  lines += [
    "",
    f"{p['clips']} clips and {p['queries']} captions of split {p['split']};"
    f" {p['frames']} frames of {p['resolution']} pixels, {p['views']},"
    f" {p['dtype']}; {p['params']} of step {p['checkpoint_step']}, seed"
    f" {p['seed']}; {p['tie_rule']}. Calibration: {q['pairs']} pairs of split"
    f" {q['split']}.",
  ]
  return "\n".join(lines)


def mismatch(workdir: Path) -> str:
  """Metrics of `evaluate --task=calibration`, and the AUC along training."""
  result = json.loads((workdir / "eval" / "calibration.json").read_text())
  known, protocol = result["metrics"], result["protocol"]
  lines = ["| | result | |", "|---|---|---|"]
  for name, beside in (
    ("auc", "chance 0.50"),
    ("auc_head", ""),
    ("auc_cosine", ""),
    ("ece", ""),
    ("noise_rate_estimate", f"true {known['noise_rate_true']:.2f}"),
    ("noise_rate_in_training", ""),
    ("mean_confidence_matched", ""),
    ("mean_confidence_mismatched", ""),
  ):
    lines.append(f"| {name} | {known[name]:.2f} | {beside} |")
  rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  along = [f"{row['pairs/auc']:.2f}" for row in rows if "pairs/auc" in row]
  lines += [
    "",
    f"{protocol['pairs']} pairs of split {protocol['split']}, captions"
    f" exchanged: {protocol['captions exchanged']}; {protocol['params']} of"
    f" step {protocol['checkpoint_step']}. AUC of the visits in training,"
    f" evenly spaced: {', '.join(along)}.",
  ]
  return "\n".join(lines)


def ledger(folder: Path) -> str:
  """How many files could not be used, and why."""
  info = json.loads((folder / "dataset.json").read_text())
  used = sum(split["clips"] for split in info["splits"].values())
  with (folder / "ledger.csv").open(newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  reasons = collections.Counter((row["what"], row["why"]) for row in rows)
  lines = [
    f"{used} files usable, {len(rows)} in the ledger:",
    "",
    "| files | what | why |",
    "|---|---|---|",
  ]
  for (what, why), count in reasons.most_common():
    lines.append(f"| {count} | {what} | {why} |")
  return "\n".join(lines)


if __name__ == "__main__":
  define_flags()
  cli.run(main)
