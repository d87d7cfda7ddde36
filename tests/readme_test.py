"""The documents tell the truth: commands run, and what is named exists."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, TINY_CONFIG

from calince_jax.data.synthetic import corpus

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TINY_FLAGS = [f"--config.{key}={value}" for key, value in TINY_CONFIG.items()]


def blocks(document, language):
  """The code blocks of a document in a language."""
  text = document.read_text()
  return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(document):
  """The shell commands of a document, as words."""
  lines = "\n".join(blocks(document, "bash")).replace("\\\n", " ")
  return [shlex.split(line, comments=True) for line in lines.splitlines()]


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
  """README's commands for one's own videos, run as they stand there.

  The corpus is small, and training's flags are followed by those of a tiny
  model.
  """
  folder = tmp_path_factory.mktemp("readme")
  manifest = corpus.generate(
    folder / "corpus", num_clips=32, mismatch=0.25, seed=0, size=32, num_test=8
  )
  shutil.move(manifest, folder / "clips.csv")
  shutil.move(folder / "corpus" / "clips", folder / "clips")
  (folder / "configs").symlink_to(ROOT / "configs")
  outputs = {}
  for words in commands(ROOT / "README.md"):
    if words[:2] != ["python", "-m"]:
      continue
    more = TINY_FLAGS if words[2] == "calince_jax.train" else []
    outputs[words[2]] = subprocess.run(
      [sys.executable, *words[1:], *more],
      cwd=folder,
      env=environment(),
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert outputs[words[2]].returncode == 0, outputs[words[2]].stderr
  return folder, outputs


def environment():
  return os.environ | {"PYTHONPATH": str(ROOT)}


def test_the_commands_of_the_readme_lead_from_a_csv_to_a_report(followed):
  folder, outputs = followed
  assert [name.split(".")[1] for name in outputs] == [
    "prepare",
    "train",
    "evaluate",
    "export",
    "report",
  ]
  assert "t2v_R@1" in outputs["calince_jax.evaluate"].stdout
  assert "<html" in (folder / "run" / "report.html").read_text()
  assert (folder / "data" / "ledger.csv").exists()


def test_the_python_of_the_readme_runs(followed):
  folder, _ = followed
  code = blocks(ROOT / "README.md", "python")
  clips = "import numpy as np; clips = np.zeros((2, 4, 32, 32, 3), np.uint8)"
  check = "print(cosine.shape, fits.shape, loss.shape)"
  done = subprocess.run(
    [sys.executable, "-c", "\n".join([clips, *code, check])],
    cwd=folder,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "(2, 2) (2,) ()"


def test_the_quickstart_runs_the_commands_that_a_user_types(tmp_path):
  """With a Python that only writes down what it is asked to run."""
  shutil.copytree(ROOT / "launch", tmp_path / "launch")
  shutil.copy(ROOT / "requirements.txt", tmp_path)
  python = tmp_path / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/sh\necho "$@" >> asked.txt\n')
  python.chmod(0o755)
  stamp = subprocess.run(
    ["sha256sum", "requirements.txt"], cwd=tmp_path, capture_output=True
  )
  (tmp_path / ".venv" / "requirements.sha256").write_bytes(stamp.stdout)

  def quickstart():
    (tmp_path / "asked.txt").unlink(missing_ok=True)
    done = subprocess.run(
      ["bash", "launch/quickstart.sh"],
      cwd=tmp_path,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "asked.txt").read_text().splitlines()
    for line in lines:  # each is printed before it is run
      assert f"+ .venv/bin/python {line}" in done.stdout
    return [line.split()[1].split(".")[-1] for line in lines]

  first = ["synthetic", "prepare", "train", "evaluate", "export", "report"]
  assert quickstart() == first
  out = tmp_path / "runs" / "quickstart"
  (out / "run" / "eval").mkdir(parents=True)
  (out / "run" / "eval" / "calibration.json").touch()
  (out / "model").mkdir()
  assert quickstart() == ["synthetic", "prepare", "train", "report"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_names_that_a_document_mentions_exist(document):
  text = document.read_text()
  for path, name in re.findall(r"`([\w/.]+\.py)::(\w+)`", text):
    source = (ROOT / path).read_text()
    assert f"def {name}(" in source, f"{document.name}: {path}::{name}"
  for path in re.findall(r"(?:configs|docs|launch|benchmarks)/\w+\.\w+", text):
    assert (ROOT / path).exists(), f"{document.name}: {path}"
  for path in re.findall(r"\]\(([\w/.]+)\)", text):
    assert (document.parent / path).exists(), f"{document.name}: {path}"


def test_the_rooms_of_build_md_are_those_of_the_package():
  text = (ROOT / "BUILD.md").read_text()
  package = ROOT / "calince_jax"
  for path in package.rglob("*.py"):
    name = path.name
    if name != "__init__.py" and not name.startswith("synthetic"):
      assert re.search(rf"\b{name}", text), f"BUILD.md: {name}"


def test_every_command_of_the_other_documents_is_known():
  """What the fixture above does not run must at least start."""
  for document in DOCUMENTS:
    for module in re.findall(
      r"python -m ([\w.]+)", document.read_text().replace("\n", " ")
    ):
      path = ROOT / module.replace(".", "/")
      known = path.with_suffix(".py"), path / "__main__.py"
      known = module == "pip" or any(path.exists() for path in known)
      assert known, f"{document.name}: {module}"
