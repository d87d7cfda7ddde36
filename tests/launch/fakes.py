"""Programs that write down how they were called, in place of a cluster's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# Appends its argv and some variables to $RECORD; $FAIL=WORD:STATUS fails where
# WORD is an argument.
RECORDER = f"""#!{sys.executable}
import json, os, shutil, sys
name = os.path.basename(sys.argv[0])
told = ("JAX_LOCAL_DEVICE_IDS", "SRUN_CPUS_PER_TASK")
seen = {{name: os.environ[name] for name in told if name in os.environ}}
with open(os.environ["RECORD"], "a") as file:
  file.write(json.dumps([[name, *sys.argv[1:]], seen]) + "\\n")
if name == "kubectl":
  with open(os.environ["RECORD"] + ".manifest", "a") as file:
    file.write("---\\n" + sys.stdin.read())
for word in sys.argv[1:]:
  if name == "gcloud" and word.endswith(".tar.gz"):
    shutil.copy(word, os.path.dirname(os.environ["RECORD"]))
states = os.environ["RECORD"] + ".states"
if "describe" in sys.argv and os.path.exists(states):
  first, *others = open(states).read().split()
  print(first)
  open(states, "w").write(" ".join(others))
word, _, status = os.environ.get("FAIL", "").partition(":")
sys.exit(int(status) if word in sys.argv else 0)
"""

# Runs a copy of the script in a job, as Slurm does.
SBATCH = """#!/usr/bin/env bash
export SLURM_SUBMIT_DIR="$PWD" SLURM_JOB_ID=17 SLURM_CPUS_PER_TASK=8
while [[ $1 == --* ]]; do shift; done
cp "$1" "$SPOOL/slurm_script"
cd / && exec bash "$SPOOL/slurm_script" "${@:2}"
"""

SCRIPTS = ("launch/tpu_pod.sh", "launch/slurm.sbatch", "launch/in_pod.sh")


def executable(path: Path, text: str) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)
  return path


class Place:
  """A repository of its own, so that nothing depends on this checkout."""

  def __init__(self, folder: Path):
    self.folder, self.root = folder, folder / "repository"
    self.bin, self.record = folder / "bin", folder / "record.jsonl"
    for name in ("gcloud", "kubectl", "srun", "scontrol", "scancel"):
      executable(self.bin / name, RECORDER)
    executable(self.bin / "sbatch", SBATCH)
    for name in (*SCRIPTS, "configs/base.py"):
      (self.root / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, self.root / name)
    executable(self.root / ".venv/bin/python", RECORDER)
    (self.root / ".gitignore").write_text(".venv/\n")
    (self.root / "calince_jax").mkdir()
    (self.root / "calince_jax" / "train.py").touch()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", self.root]
    for words in ("init -q", "add .", "commit -qm first"):
      subprocess.run([*git, *words.split()], check=True)

  def run(self, *words, cwd=None, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
      [str(word) for word in words],
      cwd=cwd or self.root,
      env=os.environ
      | {
        "PATH": f"{self.bin}:{os.environ['PATH']}",
        "RECORD": str(self.record),
        "SPOOL": str(self.folder),
      }
      | env,
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )

  def calls(self) -> list[list[str]]:
    return [argv for argv, _ in self.records()]

  def records(self) -> list:
    if not self.record.exists():
      return []
    return [json.loads(line) for line in self.record.read_text().splitlines()]
