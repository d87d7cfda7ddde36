"""Runs and data sets that are killed again and again, and compared."""

import dataclasses
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.survival.processes import (
  SECONDS,
  finish,
  last_step,
  rows,
  saving,
  start,
  until,
)
from calince_jax.errors import UserError
from calince_jax.runtime import checkpoint

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


def train_with_kills(
  words: Sequence[str], workdir: Path, kills: Sequence[Kill], **more: Any
) -> list[dict[str, Any]]:
  """Trains a run that is killed and resumed again and again, to its end.

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
