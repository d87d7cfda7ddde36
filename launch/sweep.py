"""Expands the `sweep()` of a configuration into runs, and can run them.

    python -m launch.sweep --config=configs/x.py --workdir=DIR \
      [--run --num_workers=N] [--evaluate='--task=retrieval'] \
      [--submit=slurm --sbatch='--nodes=2 --gpus-per-node=8'] \
      [--submit=jobset --image=IMAGE --topology=v5e:4x4] [--dry_run] \
      [--config.key=value ...]

`sweep()` is defined beside `get_config()` and yields one dict of overrides for
each run:

    def sweep():
      for seed in range(3):
        yield {"seed": seed, "objective.confidence": "score"}

The key "config_argument" is the argument of `get_config`:
{"config_argument": "infonce"} runs --config=configs/x.py:infonce.

Without --run the commands are printed, one line for each run, to be started
anywhere; --collect then makes the table. With --run they are started on this
machine, from the root of the repository, and finished runs are skipped. With
--submit each run becomes a job of a cluster.
"""

import shlex
import signal
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from calince_jax import cli
from calince_jax.errors import UserError
from launch import gke_jobset, submit, table
from launch.expand import expand
from launch.workers import run_all

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configuration file that defines sweep()"
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "folder that gets one run folder for each run"
)
RUN = flags.DEFINE_bool(
  "run", False, "run the commands on this machine instead of printing them"
)
COLLECT = flags.DEFINE_bool(
  "collect", False, "only make the table of runs that ended already"
)
NUM_WORKERS = flags.DEFINE_integer(
  "num_workers", 1, "how many runs to run at a time", 1
)
EVALUATE = flags.DEFINE_string(
  "evaluate", None, "flags to evaluate each run with; default: no evaluation"
)
METRICS = flags.DEFINE_list(
  "metrics", [], "columns of the table; default: step, loss, all of eval/"
)
SUBMIT = flags.DEFINE_enum(
  "submit", None, submit.CLUSTERS, "give each run to a cluster as a job"
)
SBATCH = flags.DEFINE_string(
  "sbatch", "", "with --submit=slurm: options of sbatch for each run"
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "with --submit: print what would be submitted"
)
gke_jobset.define_cluster_flags()


def main() -> None:
  """Prints, submits or runs the commands; writes the table of what was run."""
  if CONFIG.value is None or not WORKDIR.value:
    raise UserError("give --config=FILE and --workdir=DIR")
  if SUBMIT.value and (RUN.value or COLLECT.value or EVALUATE.value):
    raise UserError(
      "--submit only starts training: when the jobs have ended, --run"
      " --evaluate=... evaluates here what they trained, and --collect makes"
      " the table"
    )
  if DRY_RUN.value and not SUBMIT.value:
    raise UserError(
      "--dry_run goes with --submit; without --run nothing is run anyway"
    )
  here = RUN.value or COLLECT.value
  if here and "://" in WORKDIR.value:
    raise UserError(
      f"--workdir={WORKDIR.value}: --run and --collect need a local folder"
    )
  flag = flags.FLAGS["config"]
  runs = expand(
    config_flags.get_config_filename(flag),
    config_flags.get_override_values(flag),
    workdir=WORKDIR.value,
    evaluate=EVALUATE.value,
  )
  if SUBMIT.value == "slurm":
    submit.to_slurm(runs, WORKDIR.value, SBATCH.value, dry_run=DRY_RUN.value)
    return
  if SUBMIT.value == "jobset":
    cluster = cli.options(gke_jobset.Cluster)
    if not cluster.image or not cluster.topology:
      raise UserError("--submit=jobset needs --image and --topology")
    submit.to_jobsets(runs, WORKDIR.value, cluster, dry_run=DRY_RUN.value)
    return
  if not here:
    for run in runs:
      print(" && ".join(shlex.join(command) for command in run.commands))
    return
  workdir, failed = Path(WORKDIR.value), []
  if RUN.value:
    # SIGTERM stops the runs as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
      failed = run_all(
        {workdir / run.name: run.commands for run in runs},
        num_workers=NUM_WORKERS.value,
      )
    except KeyboardInterrupt:
      print("stopped; the same command resumes the sweep", file=sys.stderr)
      sys.exit(128 + signal.SIGINT)
  columns, rows = table.collect(
    {run.name: run.overrides for run in runs}, workdir, METRICS.value
  )
  path = table.write_table(workdir / "table.csv", columns, rows)
  print(f"\n{table.markdown(columns, rows)}\n\nwrote {path}", flush=True)
  if failed:
    sys.exit(1)


if __name__ == "__main__":
  cli.run(main)
