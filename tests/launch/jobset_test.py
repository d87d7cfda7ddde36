"""JobSets: the manifest that is filled in, and what kubectl is given."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fakes import ROOT, Place, executable

from calince_jax.errors import UserError
from launch import gke_jobset, submit
from launch.expand import Run

CLUSTER = gke_jobset.Cluster(image="IMAGE", topology="v5e:16x16", num_slices=2)
TRAIN = [
  "--config=configs/base.py:arg",
  "--workdir=gs://bucket/my run",
  '--config.data.split="$HOME" it\'s: {a} # b',
  "--config.model.video.tubelet=(2, 16)",
]


@pytest.fixture
def place(tmp_path):
  return Place(tmp_path)


# Every field of the template and its type, after the API of JobSet v1alpha2 and
# of Kubernetes' Job and Pod. A dict of types may have any keys.
ANY = object()
JOBSET = {
  "apiVersion": str,
  "kind": str,
  "metadata": {"name": str, "annotations": {ANY: str}},
  "spec": {
    "failurePolicy": {
      "maxRestarts": int,
      "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}],
    },
    "replicatedJobs": [
      {
        "name": str,
        "replicas": int,
        "template": {
          "spec": {
            "parallelism": int,
            "completions": int,
            "completionMode": str,
            "backoffLimit": int,
            "podFailurePolicy": {
              "rules": [
                {
                  "action": str,
                  "onExitCodes": {
                    "containerName": str,
                    "operator": str,
                    "values": [int],
                  },
                }
              ]
            },
            "template": {
              "spec": {
                "restartPolicy": str,
                "terminationGracePeriodSeconds": int,
                "hostNetwork": bool,
                "dnsPolicy": str,
                "nodeSelector": {ANY: str},
                "containers": [
                  {
                    "name": str,
                    "image": str,
                    "command": [str],
                    "ports": [{"containerPort": int}],
                    "resources": {
                      "requests": {ANY: str},
                      "limits": {ANY: str},
                    },
                  }
                ],
              }
            },
          }
        },
      }
    ],
  },
}


def check(value, shape, where="manifest"):
  """Every field is there, has its type, and there are no others."""
  if isinstance(shape, dict):
    assert type(value) is dict and value, where
    assert ANY in shape or value.keys() == shape.keys(), where
    for key, x in value.items():
      check(x, shape[ANY if ANY in shape else key], f"{where}.{key}")
  elif isinstance(shape, list):
    assert type(value) is list and value, where
    for x in value:
      check(x, shape[0], where)
  else:
    assert type(value) is shape, (where, value)


def parts(manifest):
  (job,) = manifest["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  return job, pod, container


def test_the_manifest_is_a_jobset_of_every_slice_and_host():
  manifest = yaml.safe_load(gke_jobset.fill("run-1", CLUSTER, TRAIN))
  check(manifest, JOBSET)
  assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert manifest["kind"] == "JobSet"
  job, pod, container = parts(manifest)
  assert job["replicas"] == 2
  spec = job["template"]["spec"]
  assert spec["parallelism"] == spec["completions"] == 64
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "16x16",
  }
  assert container["resources"]["limits"] == {"google.com/tpu": "4"}
  # YAML and Kubernetes hand the words on as they are.
  assert container["command"] == ["bash", "launch/in_pod.sh", *TRAIN]


def test_bad_input_is_not_started_again_and_a_lost_machine_is():
  manifest = yaml.safe_load(gke_jobset.fill("run-1", CLUSTER, TRAIN))
  policy = manifest["spec"]["failurePolicy"]
  assert policy["maxRestarts"] == 100
  (rule,) = policy["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  job, pod, container = parts(manifest)
  (failure,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
  assert failure["action"] == "FailJob"
  assert failure["onExitCodes"]["values"] == [2]
  assert failure["onExitCodes"]["containerName"] == container["name"]
  assert pod["restartPolicy"] == "Never"  # a podFailurePolicy asks for it


@pytest.mark.parametrize(
  ("topology", "hosts", "chips"),
  [
    ("v5e:1x1", 1, "1"),
    ("v5e:2x2", 1, "4"),
    ("v6e:2x4", 2, "4"),
    ("v5p:4x4x4", 16, "4"),
    ("tpu7x:2x2x1", 1, "4"),
  ],
)
def test_hosts_and_chips_of_a_topology(topology, hosts, chips):
  cluster = gke_jobset.Cluster(image="IMAGE", topology=topology)
  job, _, container = parts(yaml.safe_load(gke_jobset.fill("a", cluster, [])))
  assert job["template"]["spec"]["completions"] == hosts
  assert container["resources"]["requests"] == {"google.com/tpu": chips}


@pytest.mark.parametrize(
  ("name", "topology", "message"),
  [
    ("Run_1", "v5e:16x16", "--name=Run_1"),
    ("a" * 41, "v5e:16x16", "at most 40"),
    ("a", "v9:2x2", "--topology=v9:2x2 must be"),
    ("a", "v5e:16", "--topology=v5e:16 must be"),
    ("a", "v5p:1x2x3", "6 chips are not whole machines"),
  ],
)
def test_what_kubernetes_would_refuse_is_refused(name, topology, message):
  cluster = gke_jobset.Cluster(image="IMAGE", topology=topology)
  with pytest.raises(UserError, match=message):
    gke_jobset.fill(name, cluster, TRAIN)


def command(place, module, *words, **env):
  return place.run(*(sys.executable, "-m", module, *words), cwd=ROOT, **env)


def test_the_command_gives_kubectl_what_its_dry_run_prints(place):
  words = [
    *("--name=run-1", "--image=IMAGE", "--topology=v5e:4x4"),
    *("--config=configs/base.py", "--workdir=gs://bucket/1"),
    "--config.batch_size=64",
  ]
  dry = command(place, "launch.gke_jobset", *words, "--dry_run")
  assert dry.returncode == 0, dry.stderr
  assert place.calls() == []
  done = command(place, "launch.gke_jobset", *words)
  assert done.returncode == 0, done.stderr
  assert place.calls() == [["kubectl", "apply", "-f", "-"]]
  given = Path(f"{place.record}.manifest").read_text()
  assert given == "---\n" + dry.stdout
  _, _, container = parts(yaml.safe_load(given))
  assert container["command"][2:] == [
    *("--config=configs/base.py", "--workdir=gs://bucket/1"),
    "--config.batch_size=64",
  ]
  assert "kubectl logs -f jobs/run-1-slice-0" in done.stderr


def test_the_readme_command(place):
  readme = (ROOT / "launch/README.md").read_text()
  blocks = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
  (block,) = (text for text in blocks if "gke_jobset" in text)
  executable(place.bin / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  done = place.run("bash", "-ec", block, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  given = yaml.safe_load(Path(f"{place.record}.manifest").read_text())
  assert parts(given)[0]["replicas"] == 2


def test_a_kubectl_that_refuses_is_reported(place, monkeypatch):
  monkeypatch.setenv("PATH", f"{place.bin}:{os.environ['PATH']}")
  monkeypatch.setenv("RECORD", str(place.record))
  monkeypatch.setenv("FAIL", "apply:5")
  with pytest.raises(UserError, match="kubectl apply ended with status 5"):
    gke_jobset.submit("a: b\n")
  monkeypatch.setenv("PATH", "/nowhere")
  with pytest.raises(UserError, match="kubectl is missing"):
    gke_jobset.submit("a: b\n")


# --------------------------------------------------------- sweeps as many jobs


def some_runs(names):
  return [
    Run(
      name,
      {},
      (("python", "-m", "calince_jax.train", f"--workdir=W/{name}"),),
    )
    for name in names
  ]


@pytest.fixture
def on_path(place, monkeypatch):
  monkeypatch.setenv("PATH", f"{place.bin}:{os.environ['PATH']}")
  monkeypatch.setenv("RECORD", str(place.record))
  executable(place.bin / "sbatch", (place.bin / "gcloud").read_text())
  return place


def test_a_sweep_is_a_job_of_slurm_for_each_run_that_is_left(
  on_path, tmp_path, capsys
):
  work = tmp_path / "work"
  for name, event in (("seed=0", "finished"), ("seed=1", "stopped")):
    (work / name).mkdir(parents=True)
    (work / name / "events.jsonl").write_text(f'{{"event": "{event}"}}\n')
  runs = some_runs(["seed=0", "seed=1", "seed=2"])
  options = "--nodes=2 --comment='a b'"
  submit.to_slurm(runs, str(work), options, dry_run=True)
  assert on_path.calls() == []
  submit.to_slurm(runs, str(work), options, dry_run=False)
  assert on_path.calls() == [
    [
      *("sbatch", "--nodes=2", "--comment=a b", f"--job-name={name}"),
      *("launch/slurm.sbatch", f"--workdir=W/{name}"),
    ]
    for name in ("seed=1", "seed=2")
  ]
  assert "skip seed=0: finished already" in capsys.readouterr().out


def test_a_run_that_slurm_refuses_ends_the_submission(on_path, monkeypatch):
  monkeypatch.setenv("FAIL", "--job-name=b:1")
  with pytest.raises(UserError, match="run b: sbatch ended with status 1"):
    submit.to_slurm(some_runs("abc"), "W", "", dry_run=False)
  assert len(on_path.calls()) == 2


def test_a_sweep_is_a_jobset_for_each_run(on_path, capsys):
  runs = some_runs(["infonce,seed=0", "infonce,seed=1"])
  submit.to_jobsets(runs, "gs://bucket/study", CLUSTER, dry_run=True)
  printed = list(yaml.safe_load_all(capsys.readouterr().out))
  assert on_path.calls() == []
  submit.to_jobsets(runs, "gs://bucket/study", CLUSTER, dry_run=False)
  assert len(on_path.calls()) == 2
  given = Path(f"{on_path.record}.manifest").read_text()
  assert list(yaml.safe_load_all(given)) == printed
  names = [manifest["metadata"]["name"] for manifest in printed]
  assert len(set(names)) == 2
  assert all(name.startswith("run-infonce-seed-") for name in names)
  # The same run folder has the same name; another sweep has another.
  assert names[0] == submit.jobset_name("gs://bucket/study", "infonce,seed=0")
  assert names[0] != submit.jobset_name("gs://bucket/other", "infonce,seed=0")
  with pytest.raises(UserError, match="--workdir=runs/study must be gs://"):
    submit.to_jobsets(runs, "runs/study", CLUSTER, dry_run=True)


@pytest.mark.parametrize("run", ["a" * 200, "===", "Ü,seed=0", "9"])
def test_any_run_has_a_name_for_kubernetes(run):
  gke_jobset.fill(submit.jobset_name("W", run), CLUSTER, [])


STUDY = """
from configs import base

def get_config():
  return base.get_config()

def sweep():
  yield {"seed": 0}
  yield {"seed": 1}
"""


@pytest.mark.parametrize(
  ("words", "status", "said"),
  [
    (["--submit=slurm", "--dry_run"], 0, "--job-name=seed=1"),
    (
      ["--submit=jobset", "--image=I", "--topology=v5e:4x4", "--dry_run"],
      0,
      "--config.seed=1",
    ),
    (["--submit=jobset"], 2, "needs --image and --topology"),
    (["--submit=slurm", "--run"], 2, "--submit only starts training"),
    (["--run", "--dry_run"], 2, "--dry_run goes with --submit"),
  ],
)
def test_the_sweep_command_submits(place, tmp_path, words, status, said):
  study = tmp_path / "study.py"
  study.write_text(STUDY)
  done = command(
    place,
    "launch.sweep",
    *(f"--config={study}", "--workdir=/shared/study", *words),
    PYTHONPATH=str(ROOT),
  )
  assert done.returncode == status, done.stderr
  assert said in done.stdout + done.stderr and place.calls() == []


# --------------------------------------------------------- inside a container

TRAINING = """#!/usr/bin/env bash
echo "$@" >"$RECORD.words"
trap 'echo saved >"$RECORD.saved"; exit "${SAVED:-0}"' TERM
if [[ -n ${STATUS:-} ]]; then exit "$STATUS"; fi
touch "$RECORD.ready"
for _ in $(seq 300); do sleep 0.1; done
"""


@pytest.mark.parametrize("status", [0, 2, 9])
def test_training_that_ends_gives_its_status(place, status):
  executable(place.root / ".venv/bin/python", TRAINING)
  script = place.root / "launch/in_pod.sh"
  done = place.run("bash", script, *TRAIN, STATUS=str(status), cwd="/")
  assert done.returncode == status
  words = Path(f"{place.record}.words").read_text()
  assert words.startswith("-m calince_jax.train --distributed=auto --config=")


@pytest.mark.parametrize(("saved", "status"), [("0", 143), ("7", 7)])
def test_training_that_is_stopped_is_to_be_started_again(place, saved, status):
  executable(place.root / ".venv/bin/python", TRAINING)
  process = subprocess.Popen(
    ["bash", place.root / "launch/in_pod.sh", *TRAIN],
    env=os.environ | {"RECORD": str(place.record), "SAVED": saved},
  )
  ready = Path(f"{place.record}.ready")
  for _ in range(300):
    if ready.exists():
      break
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)  # to the script alone, as Kubernetes does
  assert process.wait(30) == status
  assert Path(f"{place.record}.saved").read_text() == "saved\n"


def test_the_image_is_made_of_what_is_there():
  lines = (ROOT / "launch/Dockerfile").read_text().splitlines()
  copied = [line.split()[1] for line in lines if line.startswith("COPY")]
  assert copied
  for name in copied:
    assert (ROOT / name).exists(), name
