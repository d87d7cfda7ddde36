"""Checks that broken manifests and configurations end in one message.

    python -m benchmarks.hostile.settings --out=runs/hostile_settings

Manifests go through read_manifest and the tokenizer; flags of train as far as
the first step, which is traced and not run; config.json of a run and of an
export through what evaluate, export, report and `load` open. All in this
process, and a few through the commands themselves. OUT/settings.md is a table
of it; the exit status is 1 where anything ended otherwise than in one line.
"""

import collections
import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from absl import flags
from ml_collections import config_flags

from benchmarks.hostile import manifests
from benchmarks.hostile.films import film
from calince_jax import cli, fields, files
from calince_jax.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = (
  "--config=configs/quickstart.py",
  *("--config.batch_size=16", "--config.total_steps=4"),
  *("--config.log_every=1", "--config.data.num_frames=4"),
  *("--config.data.image_size=32", "--config.model.video.size=mu"),
  *("--config.model.text.size=mu", "--config.model.video.temporal_depth=1"),
  *("--config.model.embedding_dim=16", "--config.model.head_hidden=16"),
  "--config.optimizer.warmup_share=0.5",
)
VALUES = (
  *("-1", "0", "1.5", "1e30", "-1e-9", "nan", "inf", "-inf", "", "None"),
  *("banana", "True", "[]", "(0, 0)", "(1, 2, 3)", "'x'", "{'a': 1}"),
  *("99999999999999999999", "\0", "x" * 5000, "(('[', 'fsdp'),)"),
)
MISSPELT = ("batchsize", "model", "model.", "data.datasets.x", "optimiser.lr")
JSON_VALUES = (
  *(None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", "x"),
  *([], [1], {}, {"a": 1}, "<script>alert(1)</script>"),
)


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("out", "runs/hostile_settings", "folder to write")
  flags.DEFINE_integer("manifests", 500, "number of broken manifests", 1)
  flags.DEFINE_integer("configs", 500, "number of each kind of setting", 1)
  flags.DEFINE_integer("commands", 10, "number of commands of each kind", 0)
  flags.DEFINE_integer("seed", 0, "seed of the mutations", 0)
  flags.DEFINE_string(
    "run", None, "a finished run to copy and break; default: trains one"
  )
  flags.DEFINE_string(
    "data", None, "the prepared data set to train on; default: makes one"
  )


def main() -> None:
  """Makes a data set and a run, breaks them, writes the outcomes."""
  F = flags.FLAGS
  out = Path(F.out).resolve()  # the commands run in ROOT
  shutil.rmtree(out, ignore_errors=True)
  (out / "videos").mkdir(parents=True)
  rng = np.random.default_rng(F.seed)
  make_videos(out)
  if F.data is None:
    manifest = f"--manifest={out / 'videos' / 'clips.csv'}"
    command("prepare", manifest, f"--out={out / 'set'}", "--short_side=32")
  config = [
    *SMALL,
    f"--config.data.datasets={Path(F.data or out / 'set').resolve()}",
  ]
  said: dict[str, list[str]] = collections.defaultdict(list)

  for path in manifests.make(out, F.manifests, rng):
    said["manifests"].append(attempt(open_manifest, path, out / "videos"))
  changes = choose(overrides(), F.configs, rng)
  for change in changes:
    said["flags of train"].append(attempt(open_training, [*config, change]))
  if F.run is None:
    command("train", *config, f"--workdir={out / 'run'}")
  else:
    shutil.copytree(F.run, out / "run")
  command("export", f"--workdir={out / 'run'}", f"--out={out / 'model'}")
  for kind, path, opened in (
    ("config.json of a run", out / "run" / "config.json", open_run),
    ("config.json of a run, in the report", out / "run/config.json", report),
    ("config.json of an export", out / "model" / "config.json", open_export),
  ):
    for _ in changed(path, F.configs, rng):
      said[kind].append(attempt(opened, path.parent))
  for change in changes[: F.commands]:
    said["train, as a command"].append(
      as_command("train", *config, f"--workdir={out / 'other'}", change)
    )
    shutil.rmtree(out / "other", ignore_errors=True)
  for path in sorted(out.glob("broken/*"))[: F.commands]:
    said["prepare, as a command"].append(
      as_command(
        "prepare",
        f"--manifest={path}",
        f"--root={out / 'videos'}",
        f"--out={out / 'other'}",
        "--num_workers=1",
      )
    )
    shutil.rmtree(out / "other", ignore_errors=True)
  text = table(said)
  (out / "settings.md").write_text(text + "\n")
  (out / "said.json").write_text(json.dumps(said, indent=1))
  print(text)
  faults = [
    words for all_ in said.values() for words in all_ if is_fault(words)
  ]
  if faults:
    print("\n\n".join(["", "not as it should be:", *faults]))
    sys.exit(1)


def make_videos(out: Path) -> None:
  """40 small clips of two splits, and their manifest."""
  rows = [["video", "text", "split"]]
  for i in range(40):
    film(out / "videos" / f"{i}.mp4", "mp4", "libx264", frames=9)
    rows.append([f"{i}.mp4", f"film number {i}", "train" if i < 32 else "val"])
  with (out / "videos" / "clips.csv").open("w", newline="") as file:
    csv.writer(file).writerows(rows)


# ------------------------------------------------------------ one attempt


def attempt(function: Callable[..., object], *arguments: Any) -> str:
  """ "" where it works, its message where it is refused, else a traceback."""
  words = io.StringIO()
  try:
    with contextlib.redirect_stderr(words), contextlib.redirect_stdout(words):
      function(*arguments)
  except UserError as error:
    return cli.one_line(error)
  except SystemExit:
    return words.getvalue().strip()
  except Exception:
    return f"{arguments[-1]!s:.300}: {traceback.format_exc()[-3000:]}"
  return ""


def is_fault(words: str) -> bool:
  """Whether a person would see anything but one line."""
  return "Traceback" in words or "\n" in words or len(words) > 2100


def open_manifest(path: Path, root: Path) -> None:
  """What prepare does before it decodes."""
  from calince_jax.data.records.plan import plan_shards
  from calince_jax.data.sources.manifest import read_manifest
  from calince_jax.data.tokenizer import train_tokenizer

  clips, problems = read_manifest(path, root=root)
  for problem in problems:
    if not all((problem.path, problem.what, problem.why, problem.what_to_do)):
      raise AssertionError(f"{problem} gives no reason")
  for clip in clips:
    if not Path(clip.media.path).is_relative_to(root.resolve()):
      raise AssertionError(f"{clip} leads out of {root}")
  if clips:
    plan_shards(clips, 256)
    texts = [caption.text for clip in clips for caption in clip.captions]
    train_tokenizer(texts, root.parent / "tokenizer.model")


def open_training(arguments: Sequence[str]) -> None:
  """What train does before its first step, and that step's shapes."""
  import jax

  from calince_jax import config as config_lib
  from calince_jax.training import setup

  values, argv = flags.FlagValues(), ["train", *arguments]
  config_flags.DEFINE_config_file("config", flag_values=values)
  with mock.patch.object(sys, "argv", argv):  # where it looks for overrides
    cli.parse(argv, values)
  config = values.config.to_dict()
  config_lib.check(config)
  mesh, data, training = setup.open_training(config, jax.devices())
  batch = next(setup.train_batches(config, data, mesh, 0))
  batch["preempted"] = np.zeros(config["batch_size"], bool)
  jax.eval_shape(training.step, training.abstract, batch)


def open_run(workdir: Path) -> None:
  """What evaluate and export open."""
  from calince_jax.inference import from_run

  from_run.open_run(str(workdir))


def open_export(folder: Path) -> None:
  """What a user of an exported model opens, checksums made anew."""
  import calince_jax
  from calince_jax.inference import exported

  with contextlib.suppress(UserError):
    exported.write_document(folder, files.read_json(folder / "config.json"))
  model = calince_jax.load(folder)
  model.confidence(np.zeros((2, 3, 8, 8, 3), np.uint8), ["a", "b"])


def report(workdir: Path) -> None:
  """The page, as calince_jax.report makes it."""
  from calince_jax.evals.report import page, read

  html, _ = page.make_page(read.read_run(workdir), workdir)
  if "<script" in html:
    raise AssertionError("the page holds a script")


# ------------------------------------------------------------ what is broken


def overrides() -> list[str]:
  """Every key of the configuration with every kind of value."""
  from calince_jax.config import Config

  keys = (*(key for key, _ in fields.flatten(Config)), *MISSPELT)
  return [f"--config.{key}={value}" for key in keys for value in VALUES]


def choose(all_: Sequence[str], count: int, rng: np.random.Generator) -> list:
  """`count` of them, in a random order."""
  return [all_[i] for i in rng.permutation(len(all_))[:count]]


def changed(path: Path, count: int, rng: np.random.Generator) -> Iterator[None]:
  """Breaks a JSON file in `count` ways, one after the other; mends it."""
  good = path.read_bytes()
  try:
    for i in range(count):
      path.write_bytes(broken_json(good, i, rng))
      yield
  finally:
    path.write_bytes(good)


def broken_json(good: bytes, turn: int, rng: np.random.Generator) -> bytes:
  """Most often a value that is of another kind, or missing."""
  data = bytearray(good)
  if turn % 8 == 0:
    return bytes(data[: rng.integers(len(data))])
  if turn % 8 == 1:
    for place in rng.integers(len(data), size=rng.integers(1, 6)):
      data[place] ^= 1 << rng.integers(8)
    return bytes(data)
  if turn % 64 == 2:
    return b"[" * 100_000
  document = json.loads(good)
  section, name = document, rng.choice(sorted(document))
  while (
    isinstance(section[name], dict) and section[name] and rng.random() < 0.9
  ):
    section = section[name]
    name = rng.choice(sorted(section))
  if turn % 8 == 2:
    del section[name]
  elif turn % 8 == 3:
    section[f"{name}_"] = section.pop(name)
  else:
    section[name] = JSON_VALUES[rng.integers(len(JSON_VALUES))]
  return json.dumps(document).encode()


# ------------------------------------------------------------ the commands


def run(module: str, *arguments: str) -> subprocess.CompletedProcess:
  """A command of calince_jax."""
  return subprocess.run(
    [sys.executable, "-m", f"calince_jax.{module}", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    errors="replace",
    timeout=600,
  )


def command(module: str, *arguments: str) -> None:
  """Runs a command that must succeed."""
  done = run(module, *arguments)
  if done.returncode:
    raise UserError(f"{module} failed: {done.stderr[-2000:]}")


def as_command(module: str, *arguments: str) -> str:
  """Like `attempt`."""
  if any("\0" in argument for argument in arguments):
    return "not to be had on a command line"
  done = run(module, *arguments)
  if not done.returncode:
    return ""
  lines = done.stderr.strip().splitlines()
  if lines[-1:] and lines[-1].startswith("error: ") and done.returncode == 2:
    return lines[-1]
  return f"Traceback or status {done.returncode}: {arguments} {done.stderr}"


def table(said: dict[str, list[str]]) -> str:
  """Markdown: a row a kind."""
  lines = ["| what | broken | work | one message | otherwise |"]
  lines.append("|---|---|---|---|---|")
  for kind, words in said.items():
    bad, good = sum(map(is_fault, words)), words.count("")
    refused = len(words) - bad - good
    lines.append(f"| {kind} | {len(words)} | {good} | {refused} | {bad} |")
  return "\n".join(lines)


if __name__ == "__main__":
  define_flags()
  cli.run(main)
