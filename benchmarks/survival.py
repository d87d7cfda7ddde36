"""Kills runs at random moments and looks whether they go on as if nothing was.

    python -m benchmarks.survival [--out=runs/survival] [--kills=50]

Three parts, each a section of OUT/survival.md: a data set and a run that are
killed again and again end with the bytes of those that were left alone; two
processes of which one is killed end, and go on; a long run of short epochs
does not grow. About an hour on two cores.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from calince_jax import checkpoint, command_line
from calince_jax.errors import UserError
from calince_jax.line_file import read_lines

STATE = (
  "step",
  "params",
  "opt_state",
  "ema_params",
  "calibration",
  "random_key",
  "bad_steps",
  "skipped_steps",
)
# Columns of metrics.jsonl that the clock and the machine decide.
CLOCK = (
  "examples_per_second",
  "data_wait_share",
  "resident_memory_mib",
  "seconds_to_first_step",
)
SETTINGS = {
  "batch_size": 16,
  "total_steps": 360,
  "log_every": 1,
  "checkpoint_every": 5,
  "keep_checkpoints": 2,
  "evaluate_every": 7,
  "evaluate_splits": "val",
  "data.num_frames": 4,
  "data.image_size": 32,
  "data.text_length": 16,
  "model.video_size": "mu",
  "model.text_size": "mu",
  "model.temporal_depth": 1,
  "model.embedding_dim": 16,
  "model.dtype": "float32",
  "model.predictive_depth": 1,
  "objective.memory": 0.5,
}
SECONDS = 600.0  # for anything to happen


@dataclasses.dataclass(frozen=True)
class Kill:
  """When a run is killed, and how.

  Attributes:
    moment: `step`, after a logged step and a pause; `save`, when a checkpoint
      has begun to be written; `start`, a pause after the command was given.
    number: a signal.
    steps: of `step` and `save`: so many more steps first.
    pause: seconds.
  """

  moment: str
  number: signal.Signals
  steps: int
  pause: float


def random_kill(rng: random.Random) -> Kill:
  """Half of them SIGTERM, a third in the middle of a save."""
  return Kill(
    moment=rng.choice(["step", "save", "step", "save", "start"]),
    number=rng.choice([signal.SIGKILL, signal.SIGTERM]),
    steps=rng.randint(1, 9),
    pause=rng.random() ** 2,
  )


# ---------------------------------------------------------------- processes


def start(
  module: str, *words: str, log: Path, devices: int = 1, xla: str = ""
) -> subprocess.Popen:
  """Starts `python -m calince_jax.MODULE WORDS`; what it says goes to `log`."""
  xla += f" --xla_force_host_platform_device_count={devices}"
  settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla}
  with log.open("a") as file:
    return subprocess.Popen(
      [sys.executable, "-m", f"calince_jax.{module}", *words],
      env=os.environ | settings,
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen, log: Path) -> None:
  """Waits for a process that is to end well."""
  if process.wait(SECONDS):
    raise UserError(
      f"a command ended with {process.returncode}: {log.read_text()[-2000:]}"
    )


def until(happens: Callable[[], bool], process: subprocess.Popen) -> bool:
  """Waits until something happens; False where the process ends before."""
  end = time.monotonic() + SECONDS
  while not happens():
    if process.poll() is not None:
      return False
    if time.monotonic() > end:
      process.kill()
      raise UserError(f"nothing happened for {SECONDS:g} s")
    time.sleep(0.002)
  return True


def rows(workdir: Path) -> list[dict[str, Any]]:
  """metrics.jsonl, without what the clock decides."""
  found = [json.loads(line) for line in read_lines(workdir / "metrics.jsonl")]
  return [
    {name: x for name, x in row.items() if name not in CLOCK} for row in found
  ]


def last_step(workdir: Path) -> int:
  """The last that was logged, 0 if none was."""
  lines = read_lines(workdir / "metrics.jsonl")
  return json.loads(lines[-1])["step"] if lines else 0


def saving(workdir: Path) -> set[str]:
  """The checkpoints that are being written, or were left so."""
  return set(checkpoint.half_written(str(workdir)))


# ---------------------------------------------------------------- kills


def train_with_kills(
  words: Sequence[str], workdir: Path, kills: Sequence[Kill], **more: Any
) -> list[dict[str, Any]]:
  """Trains, is killed, goes on, and so on; at last it is left to end.

  Args:
    words: of calince_jax.train, without --workdir.
    workdir: of the run.
    kills: in order.
    more: of `start`.

  Returns:
    Of each kill {moment, signal, status, step}: how the process ended, and the
    last logged step when it was killed. `late`: it had ended before.

  Raises:
    UserError: a process ended otherwise than it should.
  """
  log = workdir.with_suffix(".log")
  done = []
  for kill in kills:
    before, left = last_step(workdir), saving(workdir)
    process = start("train", *words, f"--workdir={workdir}", log=log, **more)
    reached = before + kill.steps

    def happens(kill=kill, reached=reached, left=left):
      if kill.moment == "start":
        return True
      logged = last_step(workdir) >= reached
      return logged and (kill.moment == "step" or bool(saving(workdir) - left))

    alive = until(happens, process)
    if kill.moment != "save":
      time.sleep(kill.pause * (10 if kill.moment == "start" else 0.3))
    process.send_signal(kill.number)
    status = process.wait(SECONDS)
    # A SIGTERM that comes before Python listens ends it too.
    fine = (0, -kill.number)
    if status not in fine:
      raise UserError(
        f"status {status} after {kill}: {log.read_text()[-2000:]}"
      )
    done.append(
      {
        "moment": kill.moment if alive else "late",
        "signal": kill.number.name,
        "status": status,
        "step": last_step(workdir),
        "half_written": len(saving(workdir) - left),
      }
    )
  finish(start("train", *words, f"--workdir={workdir}", log=log, **more), log)
  return done


def differences(ours: Path, theirs: Path) -> list[str]:
  """What differs between two finished runs, to the last bit; [] if nothing."""
  found = []
  a, b = rows(ours), rows(theirs)
  if [row["step"] for row in a] != [row["step"] for row in b]:
    found.append("the steps that were logged")
  found += [
    f"{name} of step {x['step']}"
    for x, y in zip(a, b, strict=False)
    for name in x.keys() | y.keys()
    if name not in x or name not in y or x[name] != y[name]
  ]
  (step, mine), (last, other) = (
    checkpoint.restore_parts(str(run), None, STATE) for run in (ours, theirs)
  )
  if step != last:
    return [*found, f"the last step: {step} and {last}"]
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(mine),
    jax.tree.leaves(other),
    strict=True,
  ):
    if not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
      found.append(jax.tree_util.keystr(path))
  return found


def prepare_with_kills(
  words: Sequence[str], out: Path, pauses: Sequence[float]
) -> int:
  """Prepares, killed a pause (seconds) after each next shard is there.

  Returns:
    How many kills came before the end.
  """
  log, hits = out.with_suffix(".log"), 0

  def shards():
    return len(list(out.glob("clips-*.array_record-*-of-?????")))

  for pause in pauses:
    before = shards()
    process = start("prepare", *words, f"--out={out}", log=log)
    until(lambda before=before: shards() > before, process)
    time.sleep(pause)
    process.kill()
    hits += process.wait() == -signal.SIGKILL
  finish(start("prepare", *words, f"--out={out}", log=log), log)
  return hits


def same_files(ours: Path, theirs: Path) -> bool:
  """Whether two folders hold the same files with the same bytes."""
  names = [sorted(p.name for p in d.iterdir()) for d in (ours, theirs)]
  return names[0] == names[1] and all(
    (ours / name).read_bytes() == (theirs / name).read_bytes()
    for name in names[0]
    if name != "dataset.json"  # it holds the folder's name
  )


# ---------------------------------------------------------------- peers


def free_port() -> int:
  """One that nothing listens to."""
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def start_two(
  words: Sequence[str], workdir: Path, **more: Any
) -> list[subprocess.Popen]:
  """Two processes of one run; what they say goes to WORKDIR.{0,1}.log."""
  address = f"localhost:{free_port()}"
  return [
    start(
      "train",
      *words,
      f"--workdir={workdir}",
      f"--coordinator_address={address}",
      "--num_processes=2",
      f"--process_id={i}",
      log=peer_log(workdir, i),
      **more,
    )
    for i in range(2)
  ]


def peer_log(workdir: Path, process: int) -> Path:
  """What a process of `start_two` said."""
  return workdir.with_name(f"{workdir.name}.{process}.log")


def kill_one_of_two(
  words: Sequence[str], workdir: Path, victim: int, at_step: int, **more: Any
) -> dict[str, Any]:
  """Kills one of two processes, waits for the other, and lets both go on.

  Returns:
    `seconds` that the other took to end, its `status`, its last `words`.
  """
  pair = start_two(words, workdir, **more)
  until(lambda: last_step(workdir) >= at_step, pair[0])
  pair[victim].kill()
  begin = time.monotonic()
  other = pair[1 - victim]
  status = other.wait(SECONDS)
  found = {"seconds": time.monotonic() - begin, "status": status}
  said = peer_log(workdir, 1 - victim).read_text().splitlines()
  errors = [line for line in said if line.startswith("error:")]
  fatal = [line for line in said if "Either the leader task" in line]
  found["words"] = (errors or fatal or said)[-1]
  for i, process in enumerate(start_two(words, workdir, **more)):
    finish(process, peer_log(workdir, i))
  return found


# ---------------------------------------------------------------- soak


def soak(
  words: Sequence[str], workdir: Path, every: float
) -> list[tuple[int, float]]:
  """Trains and looks at the resident memory: (step, MiB) every few seconds."""
  log = workdir.with_suffix(".log")
  process = start("train", *words, f"--workdir={workdir}", log=log)
  seen = []
  while process.poll() is None:
    step = last_step(workdir) if (workdir / "metrics.jsonl").exists() else 0
    if step:
      try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        kib = int(status.split("VmRSS:")[1].split()[0])
        seen.append((step, kib / 1024))
      except (OSError, IndexError):  # it has just ended
        break
    time.sleep(every)
  finish(process, log)
  return seen


def slope(seen: Sequence[tuple[int, float]]) -> tuple[float, float]:
  """MiB per 1,000 steps over the second half, and its standard error."""
  steps, memory = np.array(seen[len(seen) // 2 :], np.float64).T
  x = (steps - steps.mean()) / 1000
  b = (x * (memory - memory.mean())).sum() / (x**2).sum()
  rest = memory - memory.mean() - b * x
  error = np.sqrt((rest**2).sum() / max(len(x) - 2, 1) / (x**2).sum())
  return float(b), float(error)


# ---------------------------------------------------------------- the report


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("out", "runs/survival", "what is made is kept there")
  flags.DEFINE_integer("kills", 50, "of a run, and as many of prepare / 5", 1)
  flags.DEFINE_integer("soak_steps", 20_000, "of the long run", 100)
  flags.DEFINE_integer("seed", 0, "of the moments")
  flags.DEFINE_list("parts", ["kills", "peers", "soak"], "what is done")


def train_words(data: Path, **changes: Any) -> list[str]:
  """The command line of a small run of all three terms."""
  values = {**SETTINGS, "data.datasets": str(data), **changes}
  return ["--config=configs/cali_nce.py"] + [
    f"--config.{name}={value}" for name, value in values.items()
  ]


def main() -> None:
  """Does the parts and writes OUT/survival.md."""
  F = flags.FLAGS
  out = Path(F.out)
  out.mkdir(parents=True, exist_ok=True)
  parts = {"kills": report_kills, "peers": report_peers, "soak": report_soak}
  data = corpus(out)
  for name in F.parts:
    (out / f"{name}.md").write_text(parts[name](out, data) + "\n")
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
  """Of small shards, so that much is half done at any moment."""
  return (
    f"--manifest={out / 'corpus' / 'manifest.csv'}",
    "--clips_per_shard=8",
    "--num_workers=1",
  )


def report_kills(out: Path, data: Path) -> str:
  """Kills prepare and train, and compares with what was left alone."""
  rng = random.Random(flags.FLAGS.seed)
  for name in ("killed", "killed_data", "alone"):
    shutil.rmtree(out / name, ignore_errors=True)
  pauses = [0.02 * rng.random() for _ in range(max(flags.FLAGS.kills // 5, 1))]
  hits = prepare_with_kills(prepare_words(out), out / "killed_data", pauses)
  same = same_files(out / "killed_data", data)

  words = train_words(data)
  log = out / "alone.log"
  finish(start("train", *words, f"--workdir={out / 'alone'}", log=log), log)
  kills = [random_kill(rng) for _ in range(flags.FLAGS.kills)]
  done = train_with_kills(words, out / "killed", kills)
  different = differences(out / "killed", out / "alone")
  (out / "kills.json").write_text(json.dumps(done, indent=1) + "\n")
  return kills_table(done, different, hits, len(pauses), same)


WHEN = {
  "start": "while it starts",
  "step": "between steps",
  "save": "in the middle of a save",
  "late": "too late: it had ended",
}


def kills_table(
  done: Sequence[Mapping[str, Any]],
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
    f" the {SETTINGS['total_steps']} steps"
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


def report_soak(out: Path, data: Path) -> str:
  """Trains for long on little."""
  workdir, steps = out / "soak", flags.FLAGS.soak_steps
  shutil.rmtree(workdir, ignore_errors=True)
  changes = {
    "total_steps": steps,
    "checkpoint_every": 200,
    "evaluate_every": 200,
    "log_every": 20,
  }
  begin = time.monotonic()
  seen = soak(train_words(data, **changes), workdir, every=1.0)
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
  command_line.run(main)
