"""Input of others: whatever it is, it runs no code and ends in one message."""

import ast
import csv
import json
import os
import resource
import shutil
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import tiny_config, tiny_flags

from benchmarks.hostile import inputs, manifests, settings, videos
from benchmarks.hostile.films import film
from calince_jax import cli, fields
from calince_jax import config as config_lib
from calince_jax.config import Config
from calince_jax.data.problems import Ledger, Problem
from calince_jax.data.sources.item import Media
from calince_jax.data.sources.manifest import read_manifest
from calince_jax.data.video import workers as decode_workers
from calince_jax.data.video.jpeg import Encoding
from calince_jax.errors import UserError
from calince_jax.evals import results
from calince_jax.fields import Range
from calince_jax.prepare import Options, prepare

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
  """0.mp4 to 7.mp4 and a manifest of them, clips.csv."""
  folder = tmp_path_factory.mktemp("films") / "videos"
  folder.mkdir()
  rows = [["video", "text"]]
  for i in range(8):
    film(folder / f"{i}.mp4", "mp4", "libx264", frames=8 + i)
    rows.append([f"{i}.mp4", f"film number {i}"])
  write_rows(folder / "clips.csv", rows)
  return folder


def write_rows(path, rows):
  with open(path, "w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows(rows)
  return str(path)


# ------------------------------------------------------------ videos


def test_every_broken_video_is_used_or_has_a_reason(tmp_path):
  folder = tmp_path / "videos"
  folder.mkdir()
  files = videos.make(folder, 4 * len(videos.KINDS), seed=7)
  manifest = inputs.write_manifest(tmp_path / "clips.csv", files)
  prepare(
    Options(
      str(manifest),
      str(tmp_path / "set"),
      root=str(folder),
      num_workers=2,
      time_limit=20,
      memory_limit_mb=1024,
      max_bad_fraction=1.0,
    )
  )
  usable, ledger = inputs.outcome(tmp_path / "set")
  seen = inputs.Watched(0, "", 0.0)
  faults = [*inputs.check(seen, files, usable, ledger, 1024)]
  assert faults == []
  assert 8 < len(usable) < len(files) - 8
  # What a playlist, a link or .. could lead to was not read.
  assert not any("outside" in name for name in usable)


def test_a_worker_is_limited_in_memory_and_in_what_it_writes(films):
  """Measured in a worker itself: its limits are those of the process."""
  with decode_workers.DecodeWorkers(
    1, Encoding(), time_limit=20, memory_limit_mb=700
  ) as workers:
    request = decode_workers.Request(Media(str(films / "0.mp4")), None, None)
    (clip,) = workers.read([request])
    assert len(clip.frames) > 1
    pid = workers._workers[0]._process.pid
    for kind, limit in (
      (resource.RLIMIT_AS, 700 << 20),
      (resource.RLIMIT_FSIZE, decode_workers.MAX_FILE),
    ):
      assert resource.prlimit(pid, kind) == (limit, limit)


def test_frames_that_wait_are_bounded(films, monkeypatch):
  """With nothing to be held, a worker is not sent ahead of the slowest."""
  drawn = []

  def requests():
    for i in range(8):
      drawn.append(i)
      yield decode_workers.Request(Media(str(films / f"{i}.mp4")), None, None)

  def furthest():
    """How many requests were ahead of the results, and how long these are."""
    drawn.clear()
    ahead, lengths = 0, []
    with decode_workers.DecodeWorkers(
      1, Encoding(), time_limit=20, memory_limit_mb=1024
    ) as workers:
      for i, clip in enumerate(workers.read(requests())):
        ahead = max(ahead, len(drawn) - i)
        lengths.append(len(clip.frames))
    return ahead, lengths

  ahead, lengths = furthest()
  assert ahead == 2  # one is read while another waits
  monkeypatch.setattr(decode_workers, "MAX_HELD", 0)
  assert furthest() == (1, lengths)


def test_a_clip_beyond_all_clocks_is_outside_the_video(films):
  with decode_workers.DecodeWorkers(
    1, Encoding(), time_limit=20, memory_limit_mb=1024
  ) as workers:
    request = decode_workers.Request(Media(str(films / "0.mp4")), 1e300, None)
    (error,) = workers.read([request])
  assert error.what == "outside the video"


# ------------------------------------------------------------ manifests


def test_every_broken_manifest_works_or_gives_one_message(films, tmp_path):
  rng = np.random.default_rng(3)
  said = [
    settings.attempt(settings.open_manifest, path, films)
    for path in manifests.make(tmp_path, 90, rng)
  ]
  assert [words for words in said if settings.is_fault(words)] == []
  assert 20 < said.count("") < 80


def test_a_path_does_not_leave_the_root_unless_it_may(films, tmp_path):
  outside = tmp_path / "outside.mp4"
  shutil.copy(films / "0.mp4", outside)
  root = tmp_path / "root"
  (root / "sub").mkdir(parents=True)
  shutil.copy(films / "1.mp4", root / "in.mp4")
  (root / "link.mp4").symlink_to(outside)
  (root / "up").symlink_to(tmp_path)
  ways = ["../outside.mp4", "sub/../../outside.mp4", str(outside), "link.mp4"]
  ways += ["up/outside.mp4"]
  rows = [["video", "text"], ["sub/../in.mp4", "stays inside"]]
  manifest = write_rows(root / "m.csv", rows + [[way, "x"] for way in ways])
  clips, problems = read_manifest(manifest)
  assert [clip.video for clip in clips] == ["sub/../in.mp4"]
  assert [p.path for p in problems] == ways
  assert {p.what for p in problems} == {"outside the root"}
  clips, problems = read_manifest(manifest, allow_outside_root=True)
  assert len(clips) == 1 + len(ways) and not problems


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_manifest_that_is_no_file_is_not_waited_for(films, tmp_path, kind):
  path = tmp_path / "clips.csv"
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "device":
    path.symlink_to("/dev/zero")
  else:
    path.mkdir()
  said = "cannot be read: .* plain" if kind != "folder" else "holds no videos"
  with pytest.raises(UserError, match=f"clips.csv {said}"):
    prepare(Options(str(path), str(tmp_path / "set"), root=str(films)))


def test_names_are_no_formulas_for_a_spreadsheet(tmp_path):
  with Ledger(tmp_path / "ledger.csv", 9, 1.0) as ledger:
    for path in ("=cmd|' /C calc'!A0", "-1+1.mp4", "a=b.mp4", "line\nend"):
      ledger.add(Problem(path, "what", "why", "what to do"))
  with open(tmp_path / "ledger.csv", newline="") as file:
    paths = {row["path"] for row in csv.DictReader(file)}
  assert paths == {
    "./=cmd|' /C calc'!A0",
    "./-1+1.mp4",
    "a=b.mp4",
    "line\nend",
  }
  assert results.no_formula("=1+1") == "'=1+1"
  assert results.no_formula("a=1") == "a=1"


def test_a_message_is_one_line_whatever_it_repeats():
  said = cli.one_line(UserError("no \x1b[2J file\n'a\r\nb'" + "x" * 9999))
  assert said.isprintable() and "\\x1b[2J" in said
  assert len(said) < 2100


# ------------------------------------------------------------ configurations


def test_every_broken_configuration_works_or_gives_one_message(tiny_dataset):
  rng = np.random.default_rng(5)
  base = tiny_flags(tiny_dataset)
  said = {
    change: settings.attempt(settings.open_training, [*base, change])
    for change in settings.choose(settings.overrides(), 100, rng)
  }
  bad = [words for words in said.values() if settings.is_fault(words)]
  assert bad == []
  assert 0 < [*said.values()].count("") < 50
  numbers = {
    key
    for key, annotation in fields.flatten(Config)
    if any(isinstance(mark, Range) for mark in fields.marks(annotation))
  }
  for change, words in said.items():
    key = change.removeprefix("--config.").partition("=")[0]
    if words and key in numbers:
      assert key.split(".")[-1].removesuffix("_share") in words


@pytest.mark.parametrize(
  "key, value",
  [
    ("seed", -1),
    ("seed", True),
    ("batch_size", 2.5),
    ("data.text_length", 0),
    ("data.mismatch", 1.0),
    ("data.flip", "yes"),
    ("model.embedding_dim", 0),
    ("model.dropout", 2.0),
    ("model.logit_scale", -1.0),
    ("model.video.tubelet", (0, 16)),
    ("model.head", ["mlp"]),
    ("objective.contrastive_weight", -0.1),
    ("objective.power", float("inf")),
    ("objective.noise_rate", "none"),
    ("optimizer.learning_rate", float("nan")),
    ("optimizer.learning_rate", None),
    ("optimizer.ema_decay", 1.5),
    ("optimizer.b2", 1.0),
    ("sharding.rules", (("[", "fsdp"),)),
    ("sharding.rules", ()),
  ],
)
def test_what_would_train_nonsense_is_refused(tiny_dataset, key, value):
  config = tiny_config(tiny_dataset).to_dict()
  config_lib.check(config)
  *sections, name = key.split(".")
  section = config
  for part in sections:
    section = section[part]
  section[name] = value
  with pytest.raises(UserError, match=f"config.{key}[=:]"):
    config_lib.check(config)


def test_every_key_of_a_configuration_is_checked(tiny_dataset):
  config = tiny_config(tiny_dataset).to_dict()
  del config["model"]["head"]
  with pytest.raises(UserError, match="lacks the key 'model.head'"):
    config_lib.check(config)
  config["model"]["head"], config["model"]["magic"] = "mlp", 1
  with pytest.raises(UserError, match="unknown key 'model.magic'"):
    config_lib.check(config)


# ------------------------------------------------------------ no code


FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {
  *("yaml.load", "yaml.unsafe_load", "torch.load", "pickle.load"),
  *("joblib.load", "os.system", "os.popen"),
}


def dangers(tree):
  """What could run what a file says, in a parsed module."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from FORBIDDEN_MODULES & {a.name.split(".")[0] for a in node.names}
    elif isinstance(node, ast.ImportFrom) and not node.level:
      yield from FORBIDDEN_MODULES & {node.module.split(".")[0]}
    elif isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      yield from {name} & (FORBIDDEN_CALLS | FORBIDDEN_METHODS)
      for keyword in node.keywords:
        if keyword.arg in ("allow_pickle", "shell") and (
          ast.unparse(keyword.value) != "False"
        ):
          yield f"{name}({keyword.arg}=...)"


def test_the_source_runs_nothing_that_a_file_says():
  files = sorted((ROOT / "calince_jax").rglob("*.py"))
  assert len(files) > 50
  found = {
    str(path): [*dangers(ast.parse(path.read_text(encoding="utf-8")))]
    for path in files
  }
  assert {path: words for path, words in found.items() if words} == {}
  for source in (
    "import pickle",
    "from dill import loads",
    "eval(x)",
    "np.load(path, allow_pickle=True)",
    "torch.load(path)",
    "subprocess.run(x, shell=True)",
  ):
    assert [*dangers(ast.parse(source))], source


# ------------------------------------------------------------ killed


KILLED = """
import os, shutil, signal
left = {count}
def counted(real):
  def function(*arguments, **named):
    global left
    left -= 1
    if left == 0:
      os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)
  return function
os.replace, shutil.rmtree = counted(os.replace), counted(shutil.rmtree)
"""


def test_killed_at_every_other_step_it_ends_with_the_same_bytes(
  films, tmp_path
):
  """Just before files get their names: plan, tokenizer, shards, metadata."""

  def killed(out, count):
    arguments = [f"--manifest={films / 'clips.csv'}", f"--out={tmp_path / out}"]
    arguments += ["--clips_per_shard=4", "--num_workers=1"]
    before = KILLED.format(count=count)
    done = forked.run("calince_jax.prepare", *arguments, before=before)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode != 0

  assert not killed("whole", -1)
  runs = 1
  while killed("set", 5):  # each run gets four steps; a shard takes three
    runs += 1
    assert runs < 12
  assert runs > 3
  whole, resumed = (
    {p.name: p.read_bytes() for p in (tmp_path / out).iterdir()}
    for out in ("whole", "set")
  )
  # The folder's name is all that tells them apart.
  for content in (whole, resumed):
    info = json.loads(content.pop("dataset.json"))
    content["info"] = info | {"name": ""}
  assert resumed == whole
