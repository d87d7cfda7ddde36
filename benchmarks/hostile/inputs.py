"""Prepares broken and malicious video files, and checks the outcome of each.

    python -m benchmarks.hostile.inputs --out=runs/hostile [--count=2000]
    python -m benchmarks.hostile.inputs --out=runs/wild --folder=FILES

makes mutated files (videos.py), or takes those of FILES/manifest.csv, runs
calince_jax.prepare on them in a child whose memory and time are watched, and
checks that each is in a record or, with a reason, in the ledger. Then each file
is read once more, alone, for its time. OUT/hostile.md is a table of the
results; the exit status is 1 if a check fails.
"""

import collections
import csv
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from benchmarks.hostile import videos
from calince_jax import cli
from calince_jax.data.sources.item import Media
from calince_jax.data.video import workers as decode_workers
from calince_jax.data.video.jpeg import Encoding
from calince_jax.errors import UserError

ROOT = Path(__file__).parents[2]
PARENT_LIMIT = 1024  # MiB
SHOWN = 3  # reasons of each kind


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("out", "runs/hostile", "folder to write")
  flags.DEFINE_integer("count", 2000, "number of broken files to make", 1)
  flags.DEFINE_integer("seed", 0, "seed of the mutations", 0)
  flags.DEFINE_string(
    "folder", None, "folder of files and a manifest.csv; default: makes files"
  )
  flags.DEFINE_integer("num_workers", 2, "decoding processes", 1)
  flags.DEFINE_float("time_limit", 20.0, "seconds for one file", 1.0, 3600.0)
  flags.DEFINE_integer("memory_limit_mb", 1024, "MiB of one worker", 256, 65536)


@dataclasses.dataclass
class Watched:
  """What a child process did and took.

  Attributes:
    status: its exit status.
    output: what it printed.
    seconds: of its life.
    parent, worker, tree: peaks of resident memory in MiB: of the process, of
      the largest of its children, of all together.
  """

  status: int
  output: str
  seconds: float
  parent: float = 0.0
  worker: float = 0.0
  tree: float = 0.0


def main() -> None:
  """Makes the files, prepares them, checks the outcome, writes the table."""
  F = flags.FLAGS
  out = Path(F.out).resolve()  # the child runs in ROOT
  out.mkdir(parents=True, exist_ok=True)
  shutil.rmtree(out / "set", ignore_errors=True)
  if F.folder is None:
    folder = out / "videos"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = videos.make(folder, F.count, F.seed)
    manifest = write_manifest(out / "manifest.csv", files)
    limit = 3600.0 + F.count
  else:
    folder = Path(F.folder).resolve()
    manifest = folder / "manifest.csv"
    files, limit = [(name, "") for name in named(manifest)], 3600.0
  seen = watch(
    [
      *(sys.executable, "-m", "calince_jax.prepare"),
      f"--manifest={manifest}",
      f"--root={folder}",
      f"--out={out / 'set'}",
      f"--num_workers={F.num_workers}",
      f"--time_limit={F.time_limit:g}",
      f"--memory_limit_mb={F.memory_limit_mb}",
      "--max_bad_fraction=1",
    ],
    out / "prepare.log",
    limit,
  )
  usable, ledger = outcome(out / "set")
  failures = [*check(seen, files, usable, ledger, F.memory_limit_mb)]
  times = {
    name: (what, seconds)
    for name, what, seconds in alone(folder, files, usable, ledger)
  }
  for name, (what, seconds) in times.items():
    expected = "" if name in usable else ledger[name]["what"]
    if what != expected:
      failures.append(f"{name!r}: {what or 'usable'} alone, {expected} in all")
    if seconds > F.time_limit + 5:
      failures.append(f"{name!r} took {seconds:.0f} s")
  text = table(files, usable, ledger, times, seen, failures)
  (out / "hostile.md").write_text(text + "\n")
  print(text)
  if failures:
    print("\n".join(["", "what is wrong:", *failures]))
    sys.exit(1)


def write_manifest(path: Path, files: Sequence[tuple[str, str]]) -> Path:
  """One row a file."""
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["video", "text"])
    writer.writerows([name, f"a {kind} film"] for name, kind in files)
  return path


def named(manifest: Path) -> list[str]:
  """The videos of a manifest."""
  with manifest.open(newline="", encoding="utf-8") as file:
    return [row["video"] for row in csv.DictReader(file)]


# ------------------------------------------------------------ the child


def watch(command: Sequence[str], log: Path, limit: float) -> Watched:
  """Runs a command, prints to `log`; kills it after `limit` seconds."""
  begin, seen = time.monotonic(), Watched(0, "", 0.0)
  with (
    log.open("w") as output,
    subprocess.Popen(
      command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
    ) as process,
  ):
    while process.poll() is None:
      measure(process.pid, seen)
      if time.monotonic() - begin > limit:
        process.kill()
      time.sleep(0.05)
  seen.status, seen.output = process.returncode, log.read_text(errors="replace")
  seen.seconds = time.monotonic() - begin
  return seen


def measure(pid: int, seen: Watched) -> None:
  """Raises the peaks by what the tree of `pid` holds now."""
  sizes = {child: resident(child) for child in descendants(pid)}
  own = resident(pid)
  seen.parent = max(seen.parent, own)
  seen.worker = max(seen.worker, *sizes.values(), 0.0)
  seen.tree = max(seen.tree, own + sum(sizes.values()))


def descendants(pid: int) -> Iterator[int]:
  """The children of a process, and theirs."""
  parents = {}
  for entry in Path("/proc").iterdir():
    if entry.name.isdecimal():
      try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
      except OSError:  # it has ended meanwhile
        continue
      parents.setdefault(int(fields[1]), []).append(int(entry.name))
  waiting = [pid]
  while waiting:
    children = parents.get(waiting.pop(), [])
    waiting += children
    yield from children


def resident(pid: int) -> float:
  """MiB of memory that a process holds, 0 where it has ended."""
  try:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
  except (OSError, IndexError):
    return 0.0
  return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# ------------------------------------------------------------ what came out


def outcome(folder: Path) -> tuple[set[str], dict[str, dict[str, str]]]:
  """The videos in records, and the ledger's rows by video."""
  from calince_jax.data.records.reader import ClipReader, read_info

  if not (folder / "dataset.json").exists():
    raise UserError(f"{folder} was not finished; see what prepare printed")
  usable = set()
  for split in read_info(folder).splits:
    reader = ClipReader(folder, split)
    usable |= {reader.read([i])[0]["id"] for i in range(len(reader))}
  with (folder / "ledger.csv").open(newline="", encoding="utf-8") as file:
    # A path that would be a formula stands there as ./PATH (problems.py).
    return usable, {
      re.sub(r"^\./(?=[=+\-@])", "", row["path"]): row
      for row in csv.DictReader(file)
    }


def check(
  seen: Watched,
  files: Sequence[tuple[str, str]],
  usable: set[str],
  ledger: dict[str, dict[str, str]],
  memory_limit_mb: int,
) -> Iterator[str]:
  """Yields what is wrong, but for the files read alone."""
  if seen.status:
    yield f"prepare ended with status {seen.status}: {seen.output[-500:]}"
  if "Traceback" in seen.output:
    yield f"a traceback: {seen.output[-2000:]}"
  if seen.worker > memory_limit_mb:
    yield f"a worker held {seen.worker:.0f} MiB"
  if seen.parent > PARENT_LIMIT:
    yield f"prepare itself held {seen.parent:.0f} MiB"
  for name, kind in files:
    if (name in usable) == (name in ledger):
      yield f"{name!r} is {'both' if name in usable else 'neither'}"
    elif name in ledger:
      row = ledger[name]
      if not all((row["what"], row["why"], row["what_to_do"])):
        yield f"{name!r} has no reason: {row}"
      if "unforeseen" in row["why"]:
        yield f"{name!r}: {row['why']}"
      if kind in ("unchanged", "odd name"):
        yield f"{name!r} is a good film: {row['why']}"


def alone(
  folder: Path,
  files: Sequence[tuple[str, str]],
  usable: set[str],
  ledger: dict[str, dict[str, str]],
) -> Iterator[tuple[str, str, float]]:
  """(name, what is wrong or "", seconds) of the files that were opened."""
  F = flags.FLAGS
  with decode_workers.DecodeWorkers(
    1,
    Encoding(),
    time_limit=F.time_limit,
    memory_limit_mb=F.memory_limit_mb,
  ) as workers:
    for name, _ in files:
      path = folder / name
      if not path.is_file() or name not in usable | ledger.keys():
        continue
      if name in ledger and "manifest" in ledger[name]["why"]:
        continue  # not a matter of the file
      begin = time.monotonic()
      request = decode_workers.Request(
        Media(os.path.realpath(path)), None, None
      )
      (result,) = workers.read([request])
      what = getattr(result, "what", "")
      yield name, what, time.monotonic() - begin


# ------------------------------------------------------------ the table


def table(
  files: Sequence[tuple[str, str]],
  usable: set[str],
  ledger: dict[str, dict[str, str]],
  times: dict[str, tuple[str, float]],
  seen: Watched,
  failures: Sequence[str],
) -> str:
  """Markdown: a row a kind, and what it took."""
  F = flags.FLAGS
  lines = [
    "| kind | files | usable | in the ledger | commonest reasons | slowest |",
    "|---|---|---|---|---|---|",
  ]
  for kind in dict.fromkeys(kind for _, kind in files):
    mine = [name for name, k in files if k == kind]
    why = collections.Counter(ledger[n]["what"] for n in mine if n in ledger)
    reasons = ", ".join(f"{n} {what}" for what, n in why.most_common(SHOWN))
    slowest = max((times[n][1] for n in mine if n in times), default=0.0)
    lines.append(
      f"| {kind or 'all'} | {len(mine)} | {len(usable & set(mine))}"
      f" | {why.total()} | {reasons} | {slowest:.1f} s |"
    )
  lines += [
    "",
    f"{len(files)} files, {len(usable)} usable, {len(ledger)} in the ledger,"
    f" {len(failures)} not as they should be; {seen.seconds:.0f} s with"
    f" {F.num_workers} workers. Peaks of resident memory: prepare"
    f" {seen.parent:.0f} MiB, one worker {seen.worker:.0f} MiB (of at most"
    f" {F.memory_limit_mb}), all together {seen.tree:.0f} MiB.",
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  define_flags()
  cli.run(main)
