"""tpu_pod.sh against a fake gcloud on the PATH."""

import re
import shlex
import shutil
import sys
import time
from pathlib import Path

import pytest
from fakes import RECORDER, ROOT, Place, executable

POD = {"name": "pod", "zone": "us-central2-b"}
CREATE = {
  "accelerator": "v5litepod-16",
  "runtime_version": "v2-alpha-tpuv5-lite",
}
RUN = {"config": "configs/base.py:arg", "workdir": "gs://bucket/my run"}
EXTRA = [
  "--config.data.datasets=/data/it's mine",
  "--config.model.video.tubelet=(2, 16)",
  '--config.data.split="$HOME" *',
]
TPUS = ["gcloud", "compute", "tpus"]
WHERE = ["--zone=us-central2-b"]


@pytest.fixture
def place(tmp_path):
  """A committed repository, fakes, and how to run a script with them."""
  return Place(tmp_path)


def pod(place, command, *words, options=None, **env):
  own = {"create": CREATE, "run": RUN}.get(command, {})
  options = POD | own if options is None else options
  flags = [f"--{name}={value}" for name, value in options.items()]
  return place.run("bash", "launch/tpu_pod.sh", command, *flags, *words, **env)


def scripts(place, node="pod"):
  """What the workers of a slice are told, one string a call of gcloud ssh."""
  flag = "--command="
  return [
    next(word for word in call if word.startswith(flag)).removeprefix(flag)
    for call in place.calls()
    if call[3:6] == ["tpu-vm", "ssh", node]
  ]


def test_a_slice_is_asked_for_and_waited_for(place):
  states = Path(f"{place.record}.states")
  states.write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
  done = pod(place, "create", "--project=p", POLL_SECONDS="0.1")
  assert done.returncode == 0, done.stderr
  first, *looks = place.calls()
  assert first == [
    *(*TPUS, "queued-resources", "create", "pod", *WHERE, "--project=p"),
    "--node-id=pod",
    "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite",
  ]
  look = [*TPUS, "queued-resources", "describe", "pod", *WHERE, "--project=p"]
  assert looks == 3 * [[*look, "--format=value(state.state)"]]
  assert done.stdout.splitlines()[-1] == "pod is ACTIVE"


def test_several_slices_are_one_queued_resource(place):
  Path(f"{place.record}.states").write_text("ACTIVE")
  assert pod(place, "create", "--num_slices=2", "--spot").returncode == 0
  words = place.calls()[0]
  assert {"--node-count=2", "--node-prefix=pod", "--spot"} < set(words)
  assert not [word for word in words if word.startswith("--node-id")]


def test_slices_that_are_not_given_end_the_wait(place):
  Path(f"{place.record}.states").write_text("FAILED")
  done = pod(place, "create")
  assert done.returncode == 2
  assert done.stderr.startswith("error: the slices were not given")


def test_run_copies_sets_up_and_starts(place):
  done = pod(place, "run", "--project=p", "--", *EXTRA)
  assert done.returncode == 0, done.stderr
  where = [*WHERE, "--project=p"]
  copy, *calls = place.calls()
  assert copy[:5] == [*TPUS, "tpu-vm", "scp"]
  assert copy[5].endswith("/calince_jax.tar.gz")
  assert copy[6:] == ["pod:", *where, "--worker=all"]
  assert len(calls) == 3
  for call in calls:
    assert call[:-1] == [*TPUS, "tpu-vm", "ssh", "pod", *where, "--worker=all"]
  # The archive was made, and its folder is gone.
  assert (place.folder / "calince_jax.tar.gz").stat().st_size > 0
  assert not Path(copy[5]).parent.exists()
  said = shlex.split(done.stdout.splitlines()[-1])
  assert said[-4:] == ["--name=pod", *where, "--num_slices=1"]


def test_every_slice_is_told_the_same(place):
  assert pod(place, "run", "--num_slices=2", "--", *EXTRA).returncode == 0
  nodes = [f"pod-{i}" for i in range(2)]
  first, second = (scripts(place, node) for node in nodes)
  assert first == second and len(first) == 3
  copies = [call[6] for call in place.calls() if call[4] == "scp"]
  assert sorted(copies) == ["pod-0:", "pod-1:"]
  # Training starts on no slice before all are set up.
  told = [call[5] for call in place.calls() if call[4] == "ssh"]
  assert [sorted(told[i : i + 2]) for i in (0, 2, 4)] == 3 * [nodes]


def test_a_slice_that_fails_ends_the_run_before_it_starts(place):
  done = pod(place, "run", "--num_slices=2", FAIL="pod-1:7")
  assert done.returncode == 7
  told = scripts(place, "pod-0") + scripts(place, "pod-1")
  assert told and all("tar -xzf" in text for text in told)


@pytest.mark.parametrize("command", ["create", "run", "logs", "stop", "delete"])
def test_dry_run_prints_what_a_run_does_and_does_nothing(place, command):
  Path(f"{place.record}.states").write_text("ACTIVE")
  words = ["--", *EXTRA] if command == "run" else []
  dry = pod(place, command, "--dry_run", *words)
  assert dry.returncode == 0 and place.calls() == []
  assert not (place.root / "calince_jax.tar.gz").exists()
  lines = dry.stdout.splitlines()
  assert all(line.startswith("+ ") for line in lines)
  printed = [shlex.split(line)[1:] for line in lines]
  assert pod(place, command, *words).returncode == 0
  real = place.calls()
  if command == "run":
    real[0][5] = "./calince_jax.tar.gz"  # in a temporary folder when run
    real.insert(0, printed[0])  # git archive
    assert printed[0][:2] == ["git", "archive"]
  assert printed == real


def remote(place, script, home):
  """Runs what a worker is told, in its home."""
  done = place.run("bash", "-c", script, cwd=home)
  assert done.returncode == 0, done.stderr
  return done


def test_arguments_survive_two_shells(place):
  pod(place, "run", "--", *EXTRA)
  unpack, setup, start = scripts(place)
  home = place.folder / "home"
  # First start on a worker, and a second one over an old copy.
  for name in ("old.py", ".venv/bin/python"):
    executable(home / "calince_jax" / name, RECORDER)
  shutil.copy(place.folder / "calince_jax.tar.gz", home)
  remote(place, unpack, home)
  assert not (home / "calince_jax/old.py").exists()
  assert (home / "calince_jax/.venv/bin/python").exists()
  assert (home / "calince_jax/configs/base.py").exists()

  place.record.unlink()
  remote(place, start, home)
  for _ in range(100):  # it goes on after the connection has ended
    if place.record.exists() and place.record.read_text().endswith("\n"):
      break
    time.sleep(0.1)
  assert place.calls() == [
    [
      "python",
      "-m",
      "calince_jax.train",
      "--config=configs/base.py:arg",
      "--workdir=gs://bucket/my run",
      "--distributed=auto",
      *EXTRA,
    ]
  ]
  assert "jax[tpu]" in setup


# Lasts until it is sent TERM, as training does.
TRAINING = f"""#!{sys.executable}
import signal, sys, time
def end(*_):
  print("stopped: saved step 3", flush=True)
  sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("step 3/9", flush=True)
time.sleep(60)
"""


def test_training_goes_on_until_it_is_asked_to_stop(place):
  pod(place, "run")
  unpack, _, start = scripts(place)
  place.record.unlink()
  pod(place, "stop")
  (stop,) = scripts(place)
  home = place.folder / "home"
  executable(home / "calince_jax/.venv/bin/python", TRAINING)
  remote(place, f"touch calince_jax.log; {stop}", home)  # nothing runs yet
  remote(place, start, home)
  log = home / "calince_jax.log"
  for _ in range(100):
    if "step 3" in log.read_text():
      break
    time.sleep(0.1)
  # While it runs, nothing is unpacked over it.
  done = place.run("bash", "-c", unpack, cwd=home)
  assert done.returncode == 1 and "training runs here" in done.stderr
  done = remote(place, stop, home)
  assert done.stdout.splitlines()[-1] == "stopped: saved step 3"
  assert log.read_text().count("stopped") == 1


@pytest.mark.parametrize("has_python", [True, False])
def test_setup_adds_libtpu_of_the_pinned_version(place, has_python):
  pod(place, "run", "--python=python3.99")
  setup = scripts(place)[1]
  place.record.unlink()
  home = place.folder / "home"
  executable(
    home / "calince_jax/launch/setup.sh", f"PY={place.bin}/venv_python\n"
  )
  executable(
    place.bin / "venv_python",
    f'#!/bin/sh\n[ "$1" = -c ] && echo 1.2.3 || {place.bin}/gcloud "$@"\n',
  )
  executable(place.bin / "sudo", RECORDER)
  if has_python:
    executable(place.bin / "python3.99", "#!/bin/sh\n")
  remote(place, setup, home)
  *installs, pip = place.calls()
  assert pip[1:] == ["-m", "pip", "install", "--quiet", "jax[tpu]==1.2.3"]
  assert [call[:2] for call in installs] == (
    [] if has_python else [["sudo", "apt-get"]] * 2
  )
  if installs:
    assert installs[1][-2:] == ["python3.99", "python3.99-venv"]


def test_logs_are_of_one_worker_and_delete_is_of_all(place):
  pod(place, "logs", "--num_slices=2", "--slice=1", "--worker=3")
  pod(place, "delete", "--num_slices=2")
  logs, delete = place.calls()
  assert logs == [
    *(*TPUS, "tpu-vm", "ssh", "pod-1", *WHERE, "--worker=3"),
    "--command=tail -n 200 -F calince_jax.log",
  ]
  assert delete == [
    *(*TPUS, "queued-resources", "delete", "pod", *WHERE),
    *("--force", "--quiet"),
  ]


@pytest.mark.parametrize(
  ("command", "missing"),
  [
    *(("run", name) for name in POD | RUN),
    *(("create", name) for name in POD | CREATE),
    ("delete", "name"),
  ],
)
def test_the_missing_option_is_named(place, command, missing):
  options = POD | {"create": CREATE, "run": RUN}.get(command, {})
  del options[missing]
  done = pod(place, command, "--dry_run", options=options)
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith(f"error: --{missing}=... is missing")
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
  ("command", "words", "message"),
  [
    ("start", [], "the first argument is create, run, logs, stop or delete"),
    ("run", ["--workdir=runs/1"], "must be gs://"),
    ("run", ["--config=configs/none.py"], "there is no file configs/none.py"),
    ("run", ["--speed=9"], "unknown option '--speed=9'"),
    ("run", ["--name", "pod"], "unknown option '--name'"),
    ("run", ["--num_slices=two"], "must be a whole number"),
    ("logs", ["--num_slices=2", "--slice=2"], "--slice below it"),
    ("delete", ["--", "--config.seed=1"], "only run takes flags"),
  ],
)
def test_bad_input_is_one_line(place, command, words, message):
  done = pod(place, command, *words)
  assert done.returncode == 2 and place.calls() == []
  assert done.stderr.startswith("error: ") and message in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_failure_of_gcloud_ends_it(place):
  done = pod(place, "run", FAIL="scp:7")
  assert done.returncode == 7
  assert [call[4] for call in place.calls()] == ["scp"]


def test_uncommitted_work_is_said_to_stay_behind(place):
  assert "not committed" not in pod(place, "run").stderr
  (place.root / "new.py").touch()
  assert "not committed" in pod(place, "run").stderr


def test_the_readme_commands_for_pods(place):
  shutil.copy(ROOT / "configs/cali_nce.py", place.root / "configs")
  readme = (ROOT / "launch/README.md").read_text()
  blocks = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
  pod_block = next(text for text in blocks if "tpu_pod.sh" in text)
  slurm_block = next(text for text in blocks if "sbatch --nodes" in text)
  Path(f"{place.record}.states").write_text("ACTIVE")
  done = place.run("bash", "-ec", pod_block)
  assert done.returncode == 0, done.stderr
  start = scripts(place, "my-pod-1")[2]
  assert "--config.data.datasets=/mnt/data/webvid" in start
  place.record.unlink()
  done = place.run("bash", "-ec", slurm_block)
  assert done.returncode == 0, done.stderr
  assert place.calls()[0][-1] == "--config.data.datasets=/scratch/webvid"
