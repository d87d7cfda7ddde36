"""Every command of benchmarks/ runs once, in a small size.

The folder `runs` is that of a user who runs them all: what one command writes,
another reads, and `results` at last reads everything.
"""

import ast
import functools
import importlib
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import ROOT, TINY_CONFIG, environment
from safetensors.numpy import load_file

from benchmarks import i3d_weights, real_towers, results
from benchmarks.noise_study.collect import read_cost
from benchmarks.survival import __main__ as survival
from benchmarks.survival import kills, peers, processes, soak
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.models import i3d

STUDY = """
import importlib

METHODS = ("cotrain",)
NOISE_RATES = (0.4,)
NUM_SEEDS = 1
CORPORA = {
  "shapes": {
    "module": "calince_jax.data.synthetic",
    "flags": {
      "num_clips": 24,
      "num_val": 4,
      "num_test": 8,
      "mismatch": 0.0,
      "size": 32,
      "max_objects": 1,
    },
    "packages": (),
    "prepare": {"short_side": 32, "num_workers": 1},
    "config": {},
  },
}


def get_config(method="cotrain"):
  name = method.removesuffix("_again")  # of the cost: compiled once
  config = importlib.import_module(f"configs.{name}").get_config()
  config.update_from_flattened_dict(TINY)
  return config


def sweep():
  for method in METHODS:
    for rate in NOISE_RATES:
      yield {
        "config_argument": method,
        "data.mismatch": rate,
        "data.mismatch_seed": 0,
        "seed": 0,
      }
"""
TINY = TINY_CONFIG | {
  "batch_size": 8,
  "data.text_length": 24,
  "total_steps": 4,
  "evaluate_every": 2,
  "evaluate_splits": "val,test",
  "model.scan": False,  # one block: compiles sooner
  "objective.predictive_weight": 0.0,
}
RUN = "cotrain,mismatch=0.4,mismatch_seed=0,seed=0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where the commands are given: README.md, docs and configs are there."""
  folder = tmp_path_factory.mktemp("benchmarks")
  (folder / "docs").mkdir()
  shutil.copy(ROOT / "README.md", folder)
  shutil.copy(ROOT / "docs" / "results.md", folder / "docs")
  (folder / "configs").symlink_to(ROOT / "configs")
  (folder / "study.py").write_text(f"TINY = {TINY!r}\n{STUDY}")
  return folder


def command(folder, module, *words, devices=1):
  """Runs `python -m benchmarks.MODULE WORDS` in `folder`; it must end well."""
  done = forked.run(
    f"benchmarks.{module}",
    *words,
    cwd=folder,
    env=environment(devices) | {"PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def noise_study(folder):
  """The noise study from nothing to its section: corpus, run, evidence."""
  said = command(
    *(folder, "noise_study", "--config=study.py", "--num_workers=1"),
    "--docs=docs",
  )
  return folder / "runs" / "noise_study", said


def test_a_tiny_noise_study_from_nothing_to_its_section(noise_study, folder):
  out, said = noise_study
  assert "1 of 1 runs are finished" in said
  text = (folder / "docs" / "results.md").read_text()
  assert "8 test, 24 train, 4 val" in text
  assert re.search(r"^\| `cotrain` \| 1 \| \*?\*?\d", text, re.M)
  summary = json.loads((out / "summary.json").read_text())
  score = summary["score"]["0.4"]["cotrain"]
  assert 0 <= score["auc_end"]["mean"] <= 1


def test_the_cost_of_a_step_is_timed_in_turns(noise_study, folder):
  command(
    *(folder, "noise_study.cost", "--config=study.py"),
    *("--methods=infonce,infonce_again", "--rounds=3", "--steps=1"),
  )
  cost = read_cost(noise_study[0])
  seconds = cost["seconds_per_step"]
  assert list(seconds) == ["infonce", "infonce_again"]
  assert all(len(s) == 3 and min(s) > 0 for s in seconds.values())
  assert cost["against"]["infonce"]["infonce"]["median"] == 1.0


def test_short_runs_of_both_methods_are_counted(folder):
  words = ("noise_study.collapse", "--config=study.py", "--steps=10")
  command(folder, *words, "--batch_size=8", "--count=1")
  first = (folder / "runs/collapse/runs.jsonl").read_text()
  said = command(folder, *words, "--batch_size=8", "--count=2")
  text = (folder / "runs/collapse/collapse.md").read_text()
  assert text in said and "2 draws of 10 steps" in text
  assert re.search(r"^\| `cali_nce` \| \d of 2 \|", text, re.M)
  # It goes on behind what is there, and every draw is another corpus.
  both = (folder / "runs/collapse/runs.jsonl").read_text()
  assert both.startswith(first) and "1/2" not in said
  a, b = map(json.loads, both.splitlines())
  assert (a["style"], a["clips"]) != (b["style"], b["clips"])


@pytest.fixture(scope="module")
def hostile(noise_study, folder):
  """Broken videos, and broken settings of a run that is there."""
  out = noise_study[0]
  command(folder, "hostile.inputs", "--count=4", "--num_workers=1")
  command(
    *(folder, "hostile.settings", "--manifests=4", "--configs=2"),
    *("--commands=1", f"--run={out / RUN}", f"--data={out / 'data'}"),
  )
  return folder / "runs"


def test_broken_videos_and_settings_are_tried(hostile):
  text = (hostile / "hostile" / "hostile.md").read_text()
  assert "4 files, " in text and " 0 not as they should be" in text
  text = (hostile / "hostile_settings" / "settings.md").read_text()
  rows = re.findall(r"^\| ([\w., ]+) \| (\d+) \|.*\| 0 \|$", text, re.M)
  assert dict(rows) == {
    "manifests": "4",
    "flags of train": "2",
    "config.json of a run": "2",
    "config.json of a run, in the report": "2",
    "config.json of an export": "2",
    "train, as a command": "1",
    "prepare, as a command": "1",
  }


SHOWINFO = """#!{python}
import sys
import av
container = av.open(sys.argv[sys.argv.index("-i") + 1])
begin = container.start_time / av.time_base
for n, frame in enumerate(container.decode(video=0)):
  print(f"n: {{n}} pts: {{frame.pts}} pts_time:{{frame.time - begin}}",
        file=sys.stderr)
"""


def test_clocks_are_held_against_another(folder):
  """With the stamps of an mp4 file in the place of FFmpeg's command."""
  fake = folder / "ffmpeg"
  fake.write_text(SHOWINFO.format(python=sys.executable))
  fake.chmod(0o755)
  said = command(folder, "hostile.clocks", f"--ffmpeg={fake}", "--count=1")
  assert "1 films; the largest error is 0.00 frames" in said


def test_damage_is_seen_and_whatever_is_drawn_holds(folder):
  said = command(folder, "hostile.damage", "--count=2")
  assert re.search(
    r"^\| checkpoint \| flip \| 1 \| 0 \| 1 \| 0 \|$", said, re.M
  )
  assert re.search(r"^\| export \| flip \| 1 \|.*\| 0 \|$", said, re.M)
  assert "clocks: 2 examples hold" in command(
    folder, "hostile.fuzz", "--examples=2"
  )


def test_a_full_disk_has_its_flags(folder):
  """Only the super-user can mount the small disk; here none is filled."""
  said = command(folder, "hostile.full_disk", "--commands=", "--disk=.")
  assert "| command | tried |" in said


@pytest.fixture(scope="module")
def losses(folder):
  """The tables of the contrastive loss."""
  command(
    *(folder, "loss_memory", "--batches=64", "--pairs_per_device=16"),
    devices=8,
  )
  command(
    *(folder, "loss_time", "--devices=2", "--batch=32", "--rounds=2"),
    *("--tile=8",),
    devices=2,
  )
  return folder / "runs" / "loss"


def test_the_loss_is_measured_against_others(losses):
  memory = (losses / "memory.md").read_text()
  assert re.search(r"^\| 64 \|( [\d,]+ \|){4} [\d.]+ \|$", memory, re.M)
  assert len(re.findall(r"^\| [248] \|", memory, re.M)) == 3
  time = (losses / "time_2_32.md").read_text()
  assert len(re.findall(r"^\| \w.* \| [\d,]+ \| [\d.]+ \(", time, re.M)) == 5


@pytest.fixture(scope="module")
def timed(noise_study, folder):
  """The train step, of the shapes in which noise_study.cost has compiled it."""
  words = Tokenizer(noise_study[0] / "data" / "tokenizer.model").vocab_size
  values = TINY | {"evaluate_every": 0}
  tiny = [f"--config.{key}={value}" for key, value in values.items()]
  command(
    *(folder, "step", "--config=configs/infonce.py", *tiny),
    *("--steps=2", f"--vocab_size={words}"),
  )
  return folder / "runs" / "step"


def test_the_train_step_is_timed(timed):
  (path,) = timed.glob("cpu_*.md")
  text = path.read_text()
  assert re.search(r"^\| ours \|( [\d.,]+ \|){4} 1\.00 ", text, re.M)
  assert "MFU" not in text, "there is none of a CPU"
  assert re.search(r"[1-9][\d,.]* M operations a step.* 2 steps", text)


def test_the_towers_of_pytorch_import_it_alone():
  """Their environment has PyTorch and nothing of ours."""
  path = (ROOT / "benchmarks" / "torch_step").with_suffix(".py")
  tree = ast.parse(path.read_text(encoding="utf-8"))
  roots = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      roots.add(node.module.split(".")[0])
    elif isinstance(node, ast.Import):
      roots |= {alias.name.split(".")[0] for alias in node.names}
  assert roots - set(sys.stdlib_module_names) == {"torch"}


def test_a_plan_is_made_apart_and_kept(folder):
  words = ("plan_all", "--cases=tiny")
  assert "tiny: fits" in command(folder, *words, devices=4)
  (line,) = (folder / "runs/plan_all/plans.jsonl").read_text().splitlines()
  row = json.loads(line)
  assert row["devices"] == 4 and row["memory"] > 0 and row["sent"] > 0
  assert row["model_flops"] > 0 and "mfu" not in row  # of a CPU
  table = (folder / "runs/plan_all/plans.md").read_text()
  assert "| 1 x cpu:4 | 8 (1) |" in table


@pytest.fixture(scope="module")
def input_times(noise_study, folder):
  """The input of training, by stage and against the bare loop."""
  command(
    *(folder, "pipeline", f"--data={noise_study[0] / 'data'}"),
    *("--num_frames=2", "--image_size=24", "--batch_size=2", "--batches=1"),
    "--rounds=1",
  )
  return folder / "runs" / "pipeline"


def test_the_input_is_timed_against_the_bare_loop(input_times):
  text = (input_times / "pipeline_2.md").read_text()
  rows = dict(
    re.findall(r"^\| ([\w ,]+) \| [\d,.]+ \| ([\d.]+) \|", text, re.M)
  )
  assert rows["bare loop"] == "1.00" and float(rows["end to end"]) > 0
  assert {"python alone", "transfer", "dmvr"} <= rows.keys()


# ------------------------------------------------- commands that start others


def check_flags(module, words):
  """Raises where a command of calince_jax does not know one of its flags."""
  command_module = importlib.import_module(f"calince_jax.{module}")
  source = Path(command_module.__file__).read_text(encoding="utf-8")
  tree = ast.parse(source)
  known = {node.value for node in ast.walk(tree) if is_text(node)}
  config, changes = None, {}
  for word in words:
    name, _, value = word.removeprefix("--").partition("=")
    if name == "config":
      (tail,) = re.findall(r"configs/(\w+)\.py", value)
      config = importlib.import_module(f"configs.{tail}").get_config()
    elif name.startswith("config."):
      changes[name.removeprefix("config.")] = value
    else:
      assert name in known, f"calince_jax.{module} has no --{name}"
  if config is not None:
    keys = {key for key, _ in flat(config.to_dict())}
    assert changes.keys() <= keys


def is_text(node):
  return isinstance(node, ast.Constant) and isinstance(node.value, str)


def flat(tree, prefix=""):
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from flat(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


# What a command of the survival benchmark would make, made by copying.
COPY = """
import pathlib, shutil, sys, time
source, out = sys.argv[1:]
time.sleep(0.3)
shutil.copytree(source, out, dirs_exist_ok=True)
print("copied")
metrics = pathlib.Path(out, "metrics.jsonl")
if metrics.exists():  # a step is logged, then the others
  lines = pathlib.Path(source, metrics.name).read_text().splitlines(True)
  metrics.write_text(lines[0])
  time.sleep(1)
  metrics.write_text("".join(lines))
  time.sleep(0.4)
"""


def start_copy(sources, module, *words, log, **more):
  """In the place of processes.start: checks the flags, copies the outcome."""
  synthetic = module == "data.synthetic"
  check_flags(f"{module}.__main__" if synthetic else module, words)
  named = dict(word[2:].split("=", 1) for word in words)
  out = named["workdir"] if module == "train" else named["out"]
  with log.open("a") as file:
    return subprocess.Popen(
      [sys.executable, "-S", "-c", COPY, sources[module], out],
      stdout=file,
      stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def survived(noise_study, folder):
  """The survival benchmark, whose processes copy a finished run.

  tests/training/survival_test.py kills real ones with the same functions.
  """
  out = noise_study[0]
  sources = {
    "data.synthetic": str(out / "corpus"),
    "prepare": str(out / "data"),
    "train": str(out / RUN),
  }
  start = functools.partial(start_copy, sources)
  with pytest.MonkeyPatch.context() as patch:
    for module in (survival, kills, peers, soak):
      patch.setattr(module, "start", start)
    patch.setattr(survival, "EVERY", 0.1)
    made = folder / "runs" / "survival"
    survival.measure(made, ["kills", "peers", "soak"], 1, 100, seed=0)
  command(folder, "survival", "--parts=")  # the flags; the corpus is there
  return made


def test_survival_writes_its_three_tables(survived):
  killed = (survived / "kills.md").read_text()
  assert "kills of the run its end is to the last bit" in killed
  assert "holds the same bytes" in killed
  assert len(json.loads((survived / "kills.json").read_text())) == 1
  pair = (survived / "peers.md").read_text()
  assert "| process 1 |" in pair and "| process 0 |" in pair
  assert "to the last bit" in pair
  assert "resident memory" in (survived / "soak.md").read_text()
  assert processes.last_step(survived / "alone") == 4


def test_real_clips_gives_commands_that_are_known(tmp_path):
  """With a Python that only writes down what it is asked to run."""
  shutil.copytree(ROOT / "launch", tmp_path / "launch")
  (tmp_path / "benchmarks").mkdir()
  shutil.copy(ROOT / "benchmarks" / "real_clips.sh", tmp_path / "benchmarks")
  shutil.copy(ROOT / "requirements.txt", tmp_path)
  python = tmp_path / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/sh\necho "$@" >> asked.txt\n')
  python.chmod(0o755)
  stamp = subprocess.run(
    ["sha256sum", "requirements.txt"], cwd=tmp_path, capture_output=True
  )
  (tmp_path / ".venv" / "requirements.sha256").write_bytes(stamp.stdout)
  (tmp_path / "clips.csv").write_text("video,text,split\n")
  subprocess.run(
    [
      *("bash", "benchmarks/real_clips.sh", "clips.csv", "out"),
      "--config.total_steps=9",
    ],
    cwd=tmp_path,
    check=True,
  )
  asked = []
  for line in (tmp_path / "asked.txt").read_text().splitlines():
    _, module, *words = line.split()
    asked.append(module.removeprefix("calince_jax."))
    check_flags(asked[-1], words)
  assert asked == [
    "prepare",
    *("train", "evaluate", "report"),
    *("train", "evaluate", "report"),
  ]


# ------------------------------------------------------------ and the results


def test_results_are_written_of_all_that_the_others_made(
  noise_study, hostile, losses, timed, input_times, survived, folder
):
  said = command(folder, "results", "--hard=runs/hostile/set")
  made = ("hard", "hostile", "hostile_settings", "noise_study", "loss", "step")
  for name in (*made, "survival", "pipeline"):
    assert f"{name}: written to docs/results.md" in said
  for name in ("quickstart", "real", "real_mismatch", "hostile_wild"):
    assert f"{name}: no runs/" in said
  text = (folder / "docs" / "results.md").read_text()
  assert results.made_table(hostile / "hostile") in text
  assert results.survival_tables(survived) in text


def test_the_weights_of_i3d_become_a_folder(tmp_path):
  """Of a checkpoint of its form; what is no array of numpy is not loaded."""
  layers = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
  mixed = [name for name, _ in i3d.LAYERS if name.startswith("Mixed")]
  branches = [f"Branch_{i}/Conv3d_0a_1x1" for i in range(3)]
  branches += [f"Branch_{i}/Conv3d_0b_3x3" for i in (1, 2)]
  branches += ["Branch_3/Conv3d_0b_1x1"]

  def tree(leaf):
    return {name: leaf for name in layers} | {
      name: dict.fromkeys(branches, leaf) for name in mixed
    }

  norm = np.arange(2.0).reshape(1, 1, 1, 1, 2)
  unit = {"Conv_0": {"kernel": np.ones((1, 1, 1, 3, 2))}}
  content = {
    "params": tree(unit | {"BatchNorm_0": {"bias": norm}}),
    "batch_stats": tree({"BatchNorm_0": {"mean": norm, "var": norm + 1}}),
  }
  checkpoint = tmp_path / "i3d.ckpt"
  checkpoint.write_bytes(pickle.dumps(content, protocol=4))
  command(tmp_path, "i3d_weights", "i3d.ckpt", "i3d")
  arrays = load_file(tmp_path / "i3d" / "model.safetensors")
  assert len(arrays) == 4 * (3 + 9 * 6)
  value = arrays["Mixed_5c.Branch_2_Conv3d_0b_3x3.variance"]
  np.testing.assert_array_equal(value, [1, 2])
  checkpoint.write_bytes(pickle.dumps(Path("x"), protocol=4))
  with pytest.raises(pickle.UnpicklingError, match="is not an array"):
    i3d_weights.convert(checkpoint, tmp_path / "other")


def test_a_tower_is_held_to_its_own_code(tmp_path):
  bert = ROOT / "tests" / "goldens" / "towers" / "bert"
  sentences = load_file(bert / "expected.safetensors")["sentences"]
  np.save(tmp_path / "text.npy", sentences)
  manifest = tmp_path / "clips.csv"
  texts = "a.mp4,The dog jumps.\na.mp4,A red fox runs over cats\n"
  manifest.write_text(f"video,text\n{texts}")
  words = ("text", str(manifest), str(tmp_path / "text.npy"), str(bert))
  # 12 positions are all that it has.
  said = command(tmp_path, "real_towers", *words)
  assert float(said.split()[-1]) < 1e-5
  np.save(tmp_path / "text.npy", sentences[::-1])
  assert real_towers.main(*words[:1], *map(Path, words[1:])) > 0.1


# Need packages of their own; corpora_test.py tests what can be without.
APART = ("corpora.grid", "corpora.metaworld")


def test_no_command_is_left_out():
  """A new one must be run above."""
  text = Path(__file__).read_text(encoding="utf-8")
  for path in (ROOT / "benchmarks").rglob("*.py"):
    if "__main__" in path.read_text(encoding="utf-8").split("if __name__")[-1]:
      parts = path.relative_to(ROOT / "benchmarks").with_suffix("").parts
      name = ".".join(part for part in parts if part != "__main__")
      assert f'"{name}"' in text, name


def test_packaged_features_are_asked_for_in_order(tmp_path):
  """Their packages carry weights; a recording Python stands in for them."""
  python = tmp_path / "out" / "venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/said"\n')
  python.chmod(0o755)
  manifest = tmp_path / "clips.csv"
  manifest.write_text("video,text\na.mp4,a\n")
  script = ROOT / "benchmarks" / "packaged_features" / "run.sh"
  subprocess.run(
    ["bash", str(script), str(manifest), str(tmp_path / "out")], check=True
  )
  said = (python.parent / "said").read_text().splitlines()
  commands = (
    *("packaged_features.image", "packaged_features.motion"),
    "packaged_features.text",
  )
  kinds = [command.split(".")[1] for command in commands]
  out = tmp_path / "out"
  assert said == [f"{kind}.py {manifest} {out}/{kind}.npy" for kind in kinds]
