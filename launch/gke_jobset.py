"""Trains on TPU slices of a GKE cluster, through launch/gke_jobset.yaml.

    python -m launch.gke_jobset --name=run-1 --image=IMAGE \
      --topology=v5e:16x16 [--num_slices=2] [--dry_run] \
      --config=configs/cali_nce.py --workdir=gs://BUCKET/runs/1 \
      [--config.key=value ...]

The JobSet operator must be in the cluster, and node pools of this topology.
Where a machine is taken away, all processes start again and resume. Afterwards:
`kubectl logs --follow jobs/NAME-slice-0`, `kubectl delete jobset NAME`.
"""

import dataclasses
import json
import math
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from calince_jax import cli
from calince_jax.errors import UserError

TEMPLATE = Path(__file__).with_name("gke_jobset.yaml")

# Of cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus: what GKE calls
# the chips, and how many a machine of a slice of several machines has.
ACCELERATORS = {
  "v4": ("tpu-v4-podslice", 4),
  "v5e": ("tpu-v5-lite-podslice", 4),
  "v5p": ("tpu-v5p-slice", 4),
  "v6e": ("tpu-v6e-slice", 4),
  "tpu7x": ("tpu7x", 4),
}


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Where a JobSet runs; the flags of this command, and of sweep.

  Attributes:
    image: made with launch/Dockerfile.
    topology: of a slice, KIND:AxB or KIND:AxBxC, as in calince_jax.plan.
    num_slices: how many slices.
    max_restarts: how often the processes may start again.
  """

  image: str
  topology: str
  num_slices: int = 1
  max_restarts: int = 100


def fill(name: str, cluster: Cluster, train: Sequence[str]) -> str:
  """The manifest of one run.

  Args:
    name: of the JobSet.
    cluster: where it runs.
    train: flags of calince_jax.train.

  Raises:
    UserError: Kubernetes would refuse the name, or there is no such topology.
  """
  # With -slice-0-0-xxxxx the name of a pod is a label of at most 63 characters.
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
    raise UserError(
      f"--name={name} must be small letters, digits and hyphens, at most 40,"
      " beginning with a letter"
    )
  kind, _, shape = cluster.topology.partition(":")
  if kind not in ACCELERATORS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
    raise UserError(
      f"--topology={cluster.topology} must be KIND:AxB or KIND:AxBxC with KIND"
      f" one of {', '.join(ACCELERATORS)}"
    )
  accelerator, per_host = ACCELERATORS[kind]
  chips = math.prod(map(int, shape.split("x")))
  if chips % min(chips, per_host) or not chips:
    raise UserError(
      f"--topology={cluster.topology}: {chips} chips are not whole machines of"
      f" {per_host}"
    )
  values = {
    "name": name,
    "max_restarts": cluster.max_restarts,
    "num_slices": cluster.num_slices,
    "hosts": max(chips // per_host, 1),
    "accelerator": accelerator,
    "topology": shape,
    "image": cluster.image,
    "command": ["bash", "launch/in_pod.sh", *train],
    "chips_per_host": str(min(chips, per_host)),
  }
  template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
  return template.substitute({k: json.dumps(v) for k, v in values.items()})


def submit(manifest: str) -> None:
  """Gives the manifest to kubectl.

  Raises:
    UserError: there is no kubectl, or it refuses the manifest.
  """
  if shutil.which("kubectl") is None:
    raise UserError("kubectl is missing; install it, or use --dry_run")
  done = subprocess.run(
    ["kubectl", "apply", "-f", "-"], input=manifest, text=True, check=False
  )
  if done.returncode:
    raise UserError(f"kubectl apply ended with status {done.returncode}")


def define_flags() -> None:
  """Defines the command line."""
  config_flags.DEFINE_config_file("config", None, "a file of configs/")
  flags.DEFINE_string("workdir", None, "run folder, which all hosts can reach")
  flags.DEFINE_string("name", None, "of the JobSet")
  define_cluster_flags()
  flags.DEFINE_bool("dry_run", False, "print the manifest and submit nothing")
  flags.mark_flags_as_required(
    ["config", "workdir", "name", "image", "topology"]
  )


def define_cluster_flags() -> None:
  """Defines the flags that are fields of Cluster."""
  flags.DEFINE_string("image", None, "container image, see launch/Dockerfile")
  flags.DEFINE_string("topology", None, "of a slice, such as v5e:16x16")
  flags.DEFINE_integer("num_slices", Cluster.num_slices, "TPU slices", 1)
  flags.DEFINE_integer(
    "max_restarts", Cluster.max_restarts, "how often to start again", 0
  )


def main() -> None:
  """Fills the template, and submits or prints it."""
  values = flags.FLAGS
  config = values["config"]
  overrides = config_flags.get_override_values(config)
  manifest = fill(
    values.name,
    cli.options(Cluster),
    [
      f"--config={config_flags.get_config_filename(config)}",
      f"--workdir={values.workdir}",
      *(f"--config.{key}={value}" for key, value in overrides.items()),
    ],
  )
  if values.dry_run:
    print(manifest, end="")
    return
  submit(manifest)
  pods = shlex.join(["kubectl", "logs", "-f", f"jobs/{values.name}-slice-0"])
  print(f"submitted; its output: {pods}", file=sys.stderr)


if __name__ == "__main__":
  define_flags()
  cli.run(main)
