"""Trains a model; started again, it resumes the run.

    python -m calince_jax.train --config=configs/cali_nce.py \
      --config.data.datasets=DATA --workdir=DIR [--config.key=value ...]
"""

import dataclasses
import os

# Remarks of TensorFlow would interrupt the lines of progress.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import flags
from ml_collections import ConfigDict, config_flags

from calince_jax import cli
from calince_jax.files import check_place
from calince_jax.runtime import distributed, platform_flags
from calince_jax.training import profiling
from calince_jax.training.run import run


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; `define_flags` describes each flag."""

  workdir: str
  config: ConfigDict
  distributed: str = "off"
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  start_timeout: float = 300.0
  peer_timeout: float = 60.0
  profile_steps: str | None = None


def define_flags() -> None:
  """Defines the command line."""
  config_flags.DEFINE_config_file(
    "config", None, "configuration file; see configs/"
  )
  flags.DEFINE_string(
    "workdir", None, "run folder; a run that it holds is resumed"
  )
  flags.DEFINE_enum(
    "distributed",
    Options.distributed,
    distributed.DISTRIBUTED,
    "how the processes of a run find each other: off, one process; auto, from"
    " Cloud TPU or Slurm; manual, from --coordinator_address, --num_processes"
    " and --process_id",
  )
  flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0 of the run"
  )
  flags.DEFINE_integer(
    "num_processes", None, "number of processes of the whole run"
  )
  flags.DEFINE_integer(
    "process_id", None, "number of this process, counted from 0"
  )
  flags.DEFINE_float(
    "start_timeout",
    Options.start_timeout,
    "seconds within which all processes have to join",
    1.0,
  )
  flags.DEFINE_float(
    "peer_timeout",
    Options.peer_timeout,
    "seconds without a heartbeat after which a process counts as lost",
    1.0,
  )
  flags.DEFINE_string(
    "profile_steps",
    None,
    "FIRST:LAST, such as 10:15: steps of this start that process 0 traces into"
    " the run folder, for xprof",
  )
  flags.mark_flags_as_required(["config", "workdir"])


def train(options: Options) -> None:
  """Trains, or resumes, the run in `options.workdir`."""
  check_place("--workdir", options.workdir, bucket=True)
  cluster = distributed.Cluster(
    options.distributed,
    options.coordinator_address,
    options.num_processes,
    options.process_id,
    start_timeout=options.start_timeout,
    peer_timeout=options.peer_timeout,
  )
  config, steps = options.config.to_dict(), None
  if options.profile_steps is not None:
    steps = profiling.parse(options.profile_steps, config["total_steps"])
  run(config, options.workdir, cluster, steps)


def main(options: Options) -> None:
  """Sets the platform's flags, before JAX is first used, and trains."""
  added = platform_flags.apply()
  if added:
    print(f"XLA flags: {' '.join(added)}", flush=True)
  train(options)


if __name__ == "__main__":
  define_flags()
  cli.run(
    lambda: main(cli.options(Options)),
    interrupted="the same command resumes from the last checkpoint",
  )
