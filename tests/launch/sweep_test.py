"""The sweep: names, commands, checks, workers side by side, the table."""

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import LISTENING

from calince_jax.errors import UserError
from launch import expand, table
from launch.workers import run_all

ROOT = Path(__file__).resolve().parent.parent.parent

CONFIG = """
from configs import base

def get_config(arg=None):
  return base.get_config()

"""


@pytest.fixture
def write_config(tmp_path):
  def write(sweep: str) -> str:
    path = tmp_path / "study.py"
    path.write_text(CONFIG + sweep)
    return str(path)

  return write


GRID = """
def sweep():
  for seed in (0, 1):
    for power in (1.0, 2.0):
      yield {"seed": seed, "objective.power": power}
"""


def test_expand_gives_names_and_commands(write_config):
  config = write_config(GRID)
  runs = expand.expand(
    config + ":arg",
    {"data.datasets": "/a b"},
    workdir="out",
    evaluate="--task=retrieval --data='/c d'",
  )
  assert [run.name for run in runs] == [
    "seed=0,power=1.0",
    "seed=0,power=2.0",
    "seed=1,power=1.0",
    "seed=1,power=2.0",
  ]
  assert runs[3].overrides == {"seed": 1, "objective.power": 2.0}
  train, evaluate = runs[3].commands
  assert train == (
    sys.executable,
    "-m",
    "calince_jax.train",
    f"--config={config}:arg",
    "--config.data.datasets=/a b",
    "--config.seed=1",
    "--config.objective.power=2.0",
    "--workdir=out/seed=1,power=2.0",
  )
  assert evaluate == (
    sys.executable,
    "-m",
    "calince_jax.evaluate",
    "--workdir=out/seed=1,power=2.0",
    "--task=retrieval",
    "--data=/c d",
  )


METHODS = """
def sweep():
  for method in ("infonce", "cotrain"):
    yield {"config_argument": method, "seed": 1}
"""


def test_a_sweep_may_set_what_follows_the_colon(write_config):
  config = write_config(METHODS)
  runs = expand.expand(config, {}, workdir="out")
  assert [run.name for run in runs] == ["infonce,seed=1", "cotrain,seed=1"]
  assert runs[1].overrides == {"config_argument": "cotrain", "seed": 1}
  assert runs[1].commands[0][3:] == (
    f"--config={config}:cotrain",
    "--config.seed=1",
    "--workdir=out/cotrain,seed=1",
  )
  with pytest.raises(UserError, match="follows the colon"):
    expand.expand(config + ":other", {}, workdir="out")


def test_an_override_is_checked_against_the_argument_s_config(tmp_path):
  study = tmp_path / "study.py"
  study.write_text("""
import ml_collections

def get_config(arg="first"):
  return ml_collections.ConfigDict({arg: 0})

def sweep():
  yield {"config_argument": "second", "second": 1}
  yield {"config_argument": "second", "first": 1}
""")
  with pytest.raises(UserError, match="run second,first=1 .* --config.first"):
    expand.expand(str(study), {}, workdir="out")


def test_names_are_unambiguous_and_fit_a_file_system():
  name = expand.run_names
  assert name([{}]) == ["default"]
  assert name([{"a.x": 1, "b.x": 2}, {"c": "p/q r"}]) == [
    "a.x=1,b.x=2",
    "c=p_q_r",
  ]
  with pytest.raises(UserError, match="two runs of one name: x=p_q"):
    name([{"x": "p/q"}, {"x": "p q"}])
  with pytest.raises(UserError, match="too long"):
    name([{"x": "y" * 300}])


@pytest.mark.parametrize(
  ("sweep", "message"),
  [
    ("", r"has no sweep\(\)"),
    ("def sweep():\n  return []", "yields nothing"),
    ("def sweep():\n  yield {'sede': 0}", "run sede=0 .* --config.sede=0"),
    ("def sweep():\n  yield {'seed': 'x'}", "invalid literal"),
    ("def sweep():\n  yield {'batch_size': 8}", "set by sweep"),
    ("def sweep():\n  yield 3", "yields 3"),
    ("def sweep():\n  yield {'seed': 0}\n  yield {'seed': 0}", "one name"),
  ],
)
def test_a_bad_sweep_is_one_clear_error(write_config, sweep, message):
  with pytest.raises(UserError, match=message):
    expand.expand(write_config(sweep), {"batch_size": 4}, workdir="out")


def test_a_config_that_is_not_there():
  with pytest.raises(UserError, match="no Python file"):
    expand.expand("configs/none.py", {}, workdir="out")


def python(code: str) -> list[tuple[str, ...]]:
  return [(sys.executable, "-c", code)]


# Ends well only if the other one runs at the same time.
MEET = """
import pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:])
mine.touch()
for _ in range(200):
  if other.exists(): sys.exit(0)
  time.sleep(0.05)
sys.exit(5)
"""


def test_workers_run_side_by_side(tmp_path):
  a, b = tmp_path / "a.here", tmp_path / "b.here"
  jobs = {
    tmp_path / "a": [(sys.executable, "-c", MEET, str(a), str(b))],
    tmp_path / "b": [(sys.executable, "-c", MEET, str(b), str(a))],
  }
  assert run_all(jobs, num_workers=2, out=io.StringIO()) == []


def test_no_more_workers_than_asked(tmp_path):
  alone = "import os, time; os.mkdir('D'); time.sleep(0.2); os.rmdir('D')"
  code = alone.replace("'D'", repr(str(tmp_path / "busy")))
  jobs = {tmp_path / str(i): python(code) for i in range(3)}
  assert run_all(jobs, num_workers=1, out=io.StringIO()) == []


def test_a_worker_has_its_cores_and_environment(tmp_path):
  every = os.sched_getaffinity(0)
  cores = [{sorted(every)[-1]}, {sorted(every)[0]}]
  code = "import os; print(os.sched_getaffinity(0), os.environ['A_NAME'])"
  jobs = {tmp_path / name: python(code) for name in "ab"}
  run_all(
    jobs,
    num_workers=2,
    environment={"A_NAME": "given"},
    cores=cores,
    out=io.StringIO(),
  )
  logs = [(tmp_path / name / "sweep.log").read_text() for name in "ab"]
  for log, mine in zip(logs, cores, strict=True):
    assert f"{mine} given" in log
  assert os.sched_getaffinity(0) == every and "A_NAME" not in os.environ


def test_progress_tells_the_time_and_how_much_is_left(tmp_path):
  jobs = {
    tmp_path / str(i): python("import time; time.sleep(0.6)") for i in range(3)
  }
  out = io.StringIO()
  run_all(jobs, num_workers=1, out=out)
  told = re.findall(
    r"done   (\d) in 1 s; (\d) left, ETA 0:00:0(\d)", out.getvalue()
  )
  assert [(name, left) for name, left, _ in told] == [
    ("0", "2"),
    ("1", "1"),
    ("2", "0"),
  ]
  seconds = [int(eta) for _, _, eta in told]
  assert seconds[0] >= seconds[1] > seconds[2] == 0
  assert json.loads((tmp_path / "0/done.json").read_text())["seconds"] >= 0.6


def test_what_finished_is_skipped_and_what_changed_is_not(tmp_path):
  count = tmp_path / "count"
  code = f"open({str(count)!r}, 'a').write('x')"
  jobs, out = {tmp_path / "a": python(code)}, io.StringIO()
  run_all(jobs, num_workers=1, out=io.StringIO())
  run_all(jobs, num_workers=1, out=out)
  assert count.read_text() == "x"
  assert "skip   a" in out.getvalue()
  ((_, *arguments),) = jobs[tmp_path / "a"]
  elsewhere = [("/another/python", *arguments)]
  run_all({tmp_path / "a": elsewhere}, num_workers=1, out=io.StringIO())
  assert count.read_text() == "x"
  run_all({tmp_path / "a": python(code + "\n")}, num_workers=1, out=out)
  assert count.read_text() == "xx"


def test_a_failure_is_shown_and_does_not_stop_the_others(tmp_path):
  bad = python("print('so far so good'); raise SystemExit('disk full')")
  never = python(f"open({str(tmp_path / 'never')!r}, 'w')")
  good = python("print('fine')")
  out = io.StringIO()
  jobs = {tmp_path / "bad": bad + never, tmp_path / "good": good}
  assert run_all(jobs, num_workers=1, out=out) == [tmp_path / "bad"]
  assert "FAILED bad: exit status 1" in out.getvalue()
  assert "| disk full" in out.getvalue() and "done   good" in out.getvalue()
  assert not (tmp_path / "never").exists()
  assert "fine" in (tmp_path / "good/sweep.log").read_text()
  done = json.loads((tmp_path / "bad/done.json").read_text())
  assert done["exit_status"] == 1
  # It is tried again, and not the good one.
  out = io.StringIO()
  assert run_all(jobs, num_workers=1, out=out) == [tmp_path / "bad"]
  assert "skip   good" in out.getvalue()


def test_a_run_that_was_asked_to_stop_is_not_done(tmp_path):
  folder, events = tmp_path / "run", tmp_path / "run" / "events.jsonl"
  code = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"
  never = python(f"open({str(tmp_path / 'never')!r}, 'w')")
  for event, failed in (("stopped", [folder]), ("finished", [])):
    line = json.dumps({"event": event}) + "\n"
    command = (sys.executable, "-c", code, str(events), line)
    jobs = {folder: [command, *(never if failed else [])]}
    assert run_all(jobs, num_workers=1, out=io.StringIO()) == failed
  assert not (tmp_path / "never").exists()


# The worker starts a child of its own; both must end.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(99)
"""
SWEEP = """
import sys
from pathlib import Path
from launch.workers import run_all
folder = Path(sys.argv[1])
command = (sys.executable, "-c", sys.argv[2], str(folder / "pid"))
run_all({folder / "a": [command]}, num_workers=1)
"""


def test_ctrl_c_ends_the_whole_family(tmp_path):
  process = subprocess.Popen(
    [*LISTENING, sys.executable, "-c", SWEEP, str(tmp_path), FAMILY],
    cwd=ROOT,
    stderr=subprocess.PIPE,
  )
  pid = tmp_path / "pid"
  wait_for(lambda: pid.exists() and pid.read_text())
  process.send_signal(signal.SIGINT)
  _, error = process.communicate(timeout=20)
  assert b"KeyboardInterrupt" in error
  wait_for(lambda: not is_running(int(pid.read_text())))
  assert not (tmp_path / "a/done.json").exists()


def wait_for(condition):
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def is_running(pid):
  """A child that nobody waits for stays as a zombie where init is lazy."""
  try:
    os.kill(pid, 0)
    return " Z " not in Path(f"/proc/{pid}/stat").read_text()
  except (ProcessLookupError, FileNotFoundError):
    return False


@pytest.fixture
def two_runs(tmp_path):
  """One that has been evaluated, and one stopped while it wrote a line."""
  first, second = tmp_path / "seed=0", tmp_path / "power=2"
  (first / "eval").mkdir(parents=True)
  second.mkdir()
  rows = [{"step": 1, "loss": 3.0, "ln_N": 2.0}, {"step": 2, "loss": 1.23456}]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (first / "metrics.jsonl").write_text(text)
  (second / "metrics.jsonl").write_text(text + '{"step": 3, "lo')
  result = {"metrics": {"t2v_R@1": 50.0}, "chance": {"t2v_R@1": 1.0}}
  (first / "eval/retrieval.json").write_text(json.dumps(result))
  done = {"commands": [], "exit_status": 0}
  (first / "done.json").write_text(json.dumps(done))
  return {"seed=0": {"seed": 0}, "power=2": {"objective.power": 2}}


def test_table_has_a_row_a_run(tmp_path, two_runs):
  columns, rows = table.collect(two_runs, tmp_path)
  assert columns == [
    "run",
    "exit_status",
    "seed",
    "objective.power",
    "step",
    "loss",
    "retrieval/t2v_R@1",
  ]
  path = table.write_table(tmp_path / "table.csv", columns, rows)
  with path.open(newline="") as file:
    first, second = csv.DictReader(file)
  assert first == {
    "run": "seed=0",
    "exit_status": "0",
    "seed": "0",
    "objective.power": "",
    "step": "2",
    "loss": "1.23456",
    "retrieval/t2v_R@1": "50.0",
  }
  assert second["exit_status"] == second["retrieval/t2v_R@1"] == ""
  assert second["loss"] == "1.23456"
  lines = table.markdown(columns, rows).splitlines()
  assert lines[0].startswith("| run | exit_status | seed |")
  assert lines[2] == "| seed=0 | 0 | 0 |  | 2 | 1.235 | 50 |"


def test_table_of_chosen_metrics(tmp_path, two_runs):
  columns, _ = table.collect(two_runs, tmp_path, ["retrieval/t2v_R@1"])
  assert columns[4:] == ["retrieval/t2v_R@1"]
  with pytest.raises(UserError, match=r"no run has 'R@1'.*retrieval/t2v_R@1"):
    table.collect(two_runs, tmp_path, ["R@1"])


def sweep(*words) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "launch.sweep", *words],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def test_command_prints_one_run_a_line(write_config, tmp_path):
  words = [f"--config={write_config(GRID)}", f"--workdir={tmp_path / 'a b'}"]
  done = sweep(
    *words, "--config.data.datasets=x", "--evaluate=--task=retrieval"
  )
  assert done.returncode == 0, done.stderr
  lines = [shlex.split(line) for line in done.stdout.splitlines()]
  assert len(lines) == 4 and not (tmp_path / "a b").exists()
  assert "--config.data.datasets=x" in lines[2]
  assert f"--workdir={tmp_path}/a b/seed=1,power=1.0" in lines[2]
  assert lines[2][lines[2].index("&&") + 3] == "calince_jax.evaluate"


def test_command_checks_everything_before_anything_starts(
  write_config, tmp_path
):
  config = write_config("def sweep():\n  yield {'seed': 0}\n  yield {'sed': 0}")
  done = sweep(f"--config={config}", f"--workdir={tmp_path / 'out'}", "--run")
  assert done.returncode == 2 and not (tmp_path / "out").exists()
  assert done.stderr.startswith("error: ") and "sed" in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_command_runs_train_and_reports_its_failure(write_config, tmp_path):
  """Training is given no data set, so it ends with its one-line error."""
  config = write_config("def sweep():\n  yield {'seed': 3}")
  done = sweep(f"--config={config}", f"--workdir={tmp_path / 'out'}", "--run")
  assert done.returncode == 1, done.stderr
  assert "FAILED seed=3: exit status 2" in done.stdout
  assert "| error: " in done.stdout
  assert "| seed=3 | 2 | 3 |" in done.stdout
  assert (tmp_path / "out/table.csv").exists()


def test_the_readme_example(tmp_path):
  readme = (ROOT / "launch/README.md").read_text()
  (study,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
  (tmp_path / "study.py").write_text(study)
  command = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)[0]
  done = subprocess.run(
    ["bash", "-c", command],
    cwd=tmp_path,
    env=os.environ
    | {
      "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
      "PYTHONPATH": str(ROOT),
    },
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert len(done.stdout.splitlines()) == 4
  assert "--workdir=runs/study/confidence=none,seed=0 " in done.stdout
