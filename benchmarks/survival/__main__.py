"""Kills runs at random moments and checks that they resume exactly.

    python -m benchmarks.survival [--out=runs/survival] [--kills=50]

Four parts, each with its table in OUT: a data set and a run that are killed
again and again, compared with ones that were left alone (kills.md); a run of
two processes of which one is killed (peers.md); the memory of a long run of
short epochs (soak.md); two runs in one folder (rivals.md). About an hour on two
cores.
"""

import functools
import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.survival.kills import (
  differences,
  prepare_with_kills,
  random_kill,
  same_files,
  train_with_kills,
)
from benchmarks.survival.peers import kill_one_of_two, peer_log, start_two
from benchmarks.survival.processes import finish, start
from benchmarks.survival.rivals import staggered, two_at_once
from benchmarks.survival.soak import slope, soak
from calince_jax import cli

SETTINGS = {
  "batch_size": 16,
  "log_every": 1,
  "checkpoint_every": 5,
  "keep_checkpoints": 2,
  "evaluate_every": 7,
  "evaluate_splits": "val",
  "data.num_frames": 4,
  "data.image_size": 32,
  "data.text_length": 16,
  "model.video.size": "mu",
  "model.text.size": "mu",
  "model.video.temporal_depth": 1,
  "model.embedding_dim": 16,
  "model.dtype": "float32",
  "model.predictive_depth": 1,
  "objective.memory": 0.5,
  "objective.trust": "schedule",  # the memory of pairs goes with it
}
OTHERS = 20  # runs that are started beside one
RIVAL_STEPS = 10**6  # of the one, which is ended by SIGTERM
EVERY = 1.0  # seconds between two looks at the memory


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("out", "runs/survival", "folder to write")
  flags.DEFINE_integer("kills", 50, "kills of a run; of prepare, a fifth", 1)
  flags.DEFINE_integer("soak_steps", 20_000, "steps of the long run", 100)
  flags.DEFINE_integer("seed", 0, "seed of the moments")
  flags.DEFINE_list("parts", ["kills", "peers", "soak", "rivals"], "parts")


def train_words(data: Path, **changes: Any) -> list[str]:
  """The command line of a small run with all three terms of the loss."""
  values = {**SETTINGS, "data.datasets": str(data), **changes}
  return ["--config=configs/cali_nce.py"] + [
    f"--config.{name}={value}" for name, value in values.items()
  ]


def main() -> None:
  """Runs the parts that the flags choose."""
  F = flags.FLAGS
  measure(Path(F.out), F.parts, F.kills, F.soak_steps, F.seed)


def measure(
  out: Path, parts: Sequence[str], kills: int, soak_steps: int, seed: int
) -> None:
  """Runs the parts; each writes its table to OUT/PART.md."""
  out.mkdir(parents=True, exist_ok=True)
  reports = {
    "kills": functools.partial(report_kills, number=kills, seed=seed),
    "peers": report_peers,
    "soak": functools.partial(report_soak, steps=soak_steps),
    "rivals": functools.partial(report_rivals, seed=seed),
  }
  data = corpus(out)
  for name in parts:
    (out / f"{name}.md").write_text(reports[name](out, data) + "\n")
    print((out / f"{name}.md").read_text(), flush=True)


def corpus(out: Path) -> Path:
  """A prepared data set of 200 synthetic clips."""
  log = out / "corpus.log"
  if not (out / "data").exists():
    words = ("--num_clips=160", "--max_objects=2", f"--out={out / 'corpus'}")
    finish(start("data.synthetic", *words, log=log), log)
    words = (*prepare_words(out), f"--out={out / 'data'}")
    finish(start("prepare", *words, log=log), log)
  return out / "data"


def prepare_words(out: Path) -> tuple[str, ...]:
  """Flags of prepare: small shards, so that a kill hits one half-written."""
  return (
    f"--manifest={out / 'corpus' / 'manifest.csv'}",
    "--clips_per_shard=2",
    "--num_workers=1",
  )


def report_kills(out: Path, data: Path, number: int, seed: int) -> str:
  """Kills prepare and train, and compares with what was left alone."""
  rng = random.Random(seed)
  for name in ("killed", "killed_data", "alone"):
    shutil.rmtree(out / name, ignore_errors=True)
  pauses = [0.01 * rng.random() for _ in range(max(number // 5, 1))]
  hits = prepare_with_kills(prepare_words(out), out / "killed_data", pauses)
  same = same_files(out / "killed_data", data)

  # A kill moves a run on by fewer, so that all of them hit it.
  steps = 16 * number
  words = train_words(data, total_steps=steps)
  log = out / "alone.log"
  finish(start("train", *words, f"--workdir={out / 'alone'}", log=log), log)
  kills = [random_kill(rng) for _ in range(number)]
  done = train_with_kills(words, out / "killed", kills)
  different = differences(out / "killed", out / "alone")
  (out / "kills.json").write_text(json.dumps(done, indent=1) + "\n")
  return kills_table(done, steps, different, hits, len(pauses), same)


WHEN = {
  "start": "while it starts",
  "step": "between steps",
  "save": "in the middle of a save",
  "late": "too late: it had ended",
}


def kills_table(
  done: Sequence[Mapping[str, Any]],
  steps: int,
  different: Sequence[str],
  hits: int,
  tried: int,
  same: bool,
) -> str:
  """What was killed when, and what differs."""
  lines = ["| killed | signal | times | exit status | half-written left |"]
  lines += ["|---|---|---|---|---|"]
  kinds = sorted({(d["moment"], d["signal"]) for d in done})
  for kind in kinds:
    mine = [d for d in done if (d["moment"], d["signal"]) == kind]
    statuses = sorted({str(d["status"]) for d in mine})
    left = sum(d["half_written"] for d in mine)
    lines.append(
      f"| {WHEN[kind[0]]} | {kind[1]} | {len(mine)} | {', '.join(statuses)}"
      f" | {left} |"
    )
  lines.append(f"| in prepare | SIGKILL | {hits} of {tried} | -9 | |")
  late = sum(d["moment"] == "late" for d in done)
  verdict = (
    "to the last bit that of the run that was left alone: parameters,"
    " optimizer, average, calibration, counters, and the metrics of each of"
    f" the {steps} steps"
    if not different
    else f"**not that of the run that was left alone**: {different[:5]}"
  )
  files = "the same bytes" if same else "**other bytes**"
  return "\n".join(lines) + (
    f"\n\nAfter {len(done) - late} kills of the run its end is {verdict}."
    f" The data set whose making was killed holds {files}."
  )


def report_peers(out: Path, data: Path) -> str:
  """Kills each of two processes in turn."""
  words = [*train_words(data, total_steps=40), "--peer_timeout=10"]
  lines = ["| killed | the other ended after | status | its words |"]
  lines += ["|---|---|---|---|"]
  alone = out / "two_alone"
  shutil.rmtree(alone, ignore_errors=True)
  for i, process in enumerate(start_two(words, alone, devices=2)):
    finish(process, peer_log(alone, i))
  different = []
  for victim in (1, 0):
    workdir = out / f"peer_{victim}"
    shutil.rmtree(workdir, ignore_errors=True)
    peer_log(workdir, 1 - victim).unlink(missing_ok=True)
    found = kill_one_of_two(words, workdir, victim, 12, devices=2)
    said = found["words"].split("absl::Status: ")[-1][:160]
    lines.append(
      f"| process {victim} | {found['seconds']:.1f} s | {found['status']}"
      f" | {said} |"
    )
    different += differences(workdir, alone)
  verdict = "to the last bit" if not different else f"**not**: {different[:5]}"
  return "\n".join(lines) + (
    "\n\nTime limit (--peer_timeout): 10 s. Started again, both runs end as the"
    f" one in which nothing was killed: {verdict}."
  )


def report_rivals(out: Path, data: Path, seed: int) -> str:
  """Two at once in a new folder, then twenty beside one that goes on."""
  for path in out.glob("rivals*"):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  words = train_words(data, total_steps=6)
  ends = two_at_once(words, out / "rivals_new")
  lines = ["| two at once | status | last words |", "|---|---|---|"]
  lines += [
    f"| {i} | {status} | {said[:160]} |"
    for i, (status, said) in enumerate(ends)
  ]
  words = train_words(data, total_steps=RIVAL_STEPS)
  found = staggered(words, out / "rivals", OTHERS, random.Random(seed))
  steps = found["steps"]
  whole = steps == list(range(1, len(steps) + 1))
  return "\n".join(lines) + (
    f"\n\nBeside a run that went on, {found['refused']} of {OTHERS} others were"
    f" refused in one line that names it; ended by SIGTERM with status"
    f" {found['status']}, it had logged {len(steps)} steps,"
    f" {'none' if whole else '**some**'} of them lost."
    + ("" if found["alive"] else " **It had ended before the last of them.**")
    + "".join(f"\n\n**{said}**" for said in found["words"])
  )


def report_soak(out: Path, data: Path, steps: int) -> str:
  """Trains for many short epochs and measures the memory."""
  workdir = out / "soak"
  shutil.rmtree(workdir, ignore_errors=True)
  changes = {
    "total_steps": steps,
    "checkpoint_every": 200,
    "evaluate_every": 200,
    "log_every": 20,
  }
  begin = time.monotonic()
  seen = soak(train_words(data, **changes), workdir, EVERY)
  minutes = (time.monotonic() - begin) / 60
  (out / "soak.json").write_text(json.dumps(seen) + "\n")
  b, error = slope(seen)
  memory = [mib for _, mib in seen]
  middle = memory[len(memory) // 2]
  epochs = steps * SETTINGS["batch_size"] / 160
  return (
    f"{steps:,} steps, {epochs:.0f} epochs of 160 clips,"
    f" {steps // 200} checkpoints and evaluations in {minutes:.0f} minutes:"
    f" resident memory {middle:.0f} MiB half way, {memory[-1]:.0f} MiB at the"
    f" end, at most {max(memory):.0f} MiB; over the second half"
    f" {b:+.2f} MiB per 1,000 steps (standard error {error:.2f})."
  )


if __name__ == "__main__":
  define_flags()
  cli.run(main)
