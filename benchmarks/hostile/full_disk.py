"""Runs every command on a disk that becomes full, at random places.

    python -m benchmarks.hostile.full_disk [--out=runs/full_disk] [--count=20]

A small disk in memory (tmpfs, which only the super-user can mount) holds the
command's outputs; a ballast leaves a random number of bytes free, fewer than
the command needs. It must end in one line with status 2, every earlier result
be whole, and nothing half-written have a final name. OUT/full_disk.md is a
table of it; the exit status is 1 where it is not so.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.hostile.settings import ROOT, SMALL, command, make_videos
from calince_jax import cli
from calince_jax.errors import UserError

COMMANDS = ("prepare", "train", "evaluate", "export", "report")
SECONDS = 600.0  # for one command
DISK = 256 << 20  # bytes


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("out", "runs/full_disk", "folder to write")
  flags.DEFINE_integer("count", 20, "places, over all commands", 1)
  flags.DEFINE_integer("seed", 0, "of the places", 0)
  flags.DEFINE_list("commands", list(COMMANDS), "which are tried")
  flags.DEFINE_string("disk", None, "an empty small disk; default: mounts one")


def main() -> None:
  """Makes a run and its outputs, then fills the disk again and again."""
  F = flags.FLAGS
  out = Path(F.out).resolve()
  shutil.rmtree(out, ignore_errors=True)
  (out / "videos").mkdir(parents=True)
  make_videos(out)
  disk = Path(F.disk or out / "disk")
  if F.disk is None:
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk))
    if subprocess.run(mount, check=False).returncode:
      raise UserError("a small disk cannot be mounted; give one with --disk")
  try:
    rng, rows = np.random.default_rng(F.seed), []
    if names := [name for name in COMMANDS if name in F.commands]:
      rows = [*attempts(out, disk, names, F.count, rng)]
  finally:
    if F.disk is None:
      subprocess.run(("umount", str(disk)), check=False)
  text = table(rows)
  (out / "full_disk.md").write_text(text + "\n")
  print(text)
  wrong = [row for row in rows if row[3]]
  if wrong:
    print("\n".join(map(str, wrong)))
    sys.exit(1)


def words_of(name: str, out: Path, disk: Path) -> list[str]:
  """The flags of a command whose outputs lie on the disk."""
  run = f"--workdir={disk / 'run'}"
  return {
    "prepare": [
      f"--manifest={out / 'videos' / 'clips.csv'}",
      f"--out={disk / 'set'}",
      *("--short_side=32", "--num_workers=1", "--clips_per_shard=8"),
    ],
    "train": [
      *SMALL,
      "--config.checkpoint_every=2",
      f"--config.data.datasets={out / 'set'}",
      run,
    ],
    "evaluate": [
      *(run, f"--data={out / 'set'}", "--split=val"),
      *("--task=retrieval,calibration", "--batch_size=8"),
    ],
    "export": [run, f"--out={disk / 'model'}"],
    "report": [run],
  }[name]


def attempts(
  out: Path,
  disk: Path,
  names: Sequence[str],
  count: int,
  rng: np.random.Generator,
):
  """Yields (command, bytes free, what it said, what is wrong)."""
  room = needed(out, disk)
  for turn in range(count):
    name = names[turn % len(names)]
    restore(name, out, disk)
    # What is written again is there already, and the new stands beside it.
    free = int(rng.integers(0, max(room[name] * 9 // 10, 4096)))
    before = contents(disk)
    fill(disk, free)
    done = run(name, words_of(name, out, disk))
    (disk / "ballast").unlink()
    yield name, free, done.stderr.strip(), wrong(name, done, before, disk)


def needed(out: Path, disk: Path) -> dict[str, int]:
  """Runs all commands once, and returns how many bytes each wrote."""
  command("prepare", *words_of("prepare", out, disk))
  shutil.copytree(disk / "set", out / "set")
  room = {"prepare": size(disk)}
  for name in COMMANDS[1:]:
    before = size(disk)
    command(name, *words_of(name, out, disk))
    room[name] = size(disk) - before
    if name == "train":
      shutil.copytree(disk / "run", out / "run")
  return room


def restore(name: str, out: Path, disk: Path) -> None:
  """The disk as it is before a command: what others made, whole."""
  for path in disk.iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  if name != "prepare":
    shutil.copytree(out / "run", disk / "run")
  if name == "train":  # more steps, of which there is no checkpoint yet
    shutil.rmtree(disk / "run" / "checkpoints" / "4")
  if name in ("evaluate", "report"):  # earlier results, which must stay
    (disk / "run" / "eval").mkdir(exist_ok=True)
    (disk / "run" / "report.html").write_text("an earlier page")


def fill(disk: Path, free: int) -> None:
  """Leaves so many bytes free."""
  status = os.statvfs(disk)
  left = status.f_bavail * status.f_frsize
  with (disk / "ballast").open("wb") as file:
    os.posix_fallocate(file.fileno(), 0, max(left - free, 1))


def run(name: str, words: Sequence[str]) -> subprocess.CompletedProcess:
  """A command; its status is 124 where it hangs."""
  begin = [sys.executable, "-m", f"calince_jax.{name}", *words]
  try:
    return subprocess.run(
      begin, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )
  except subprocess.TimeoutExpired:
    return subprocess.CompletedProcess(begin, 124, "", "it hangs")


def contents(disk: Path) -> dict[str, str]:
  """The digest of each file that must stay as it is."""
  return {
    str(path.relative_to(disk)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in disk.rglob("*")
    if path.is_file() and path.name not in CHANGING
  }


# Logs that grow, and marks of who is at work.
CHANGING = ("metrics.jsonl", "events.jsonl", "lock.json", "ballast")


def wrong(name, done, before, disk) -> str:
  """What is not as it should be, "" where all is."""
  lines = [
    line for line in done.stderr.splitlines() if line.startswith("error: ")
  ]
  after = contents(disk)
  lost = [p for p, digest in before.items() if after.get(p) != digest]
  left = [p for p in after if p.split("/")[-1].endswith(".partial")]
  if done.returncode == 0:
    return f"changed: {lost}" if lost and name != "report" else ""
  if done.returncode != 2 or len(lines) != 1 or "Traceback" in done.stderr:
    return f"status {done.returncode}: {done.stderr[-1500:]}"
  if lost or left:
    return f"changed or lost: {lost}, left: {left}"
  return ""


def size(folder: Path) -> int:
  """Bytes of all files in it."""
  return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def table(rows) -> str:
  """Markdown: a row a command."""
  lines = ["| command | tried | had room | one line, status 2 | otherwise |"]
  lines.append("|---|---|---|---|---|")
  for name in COMMANDS:
    mine = [row for row in rows if row[0] == name]
    bad = sum(bool(row[3]) for row in mine)
    room = sum(not row[3] and "error: " not in row[2] for row in mine)
    lines.append(
      f"| {name} | {len(mine)} | {room} | {len(mine) - bad - room} | {bad} |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  define_flags()
  cli.run(main)
