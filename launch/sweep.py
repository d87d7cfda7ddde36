"""Expands a config's `sweep()` into runs, and runs them side by side.

    python -m launch.sweep --config=configs/x.py --workdir=DIR \
      [--run --num_workers=N] [--evaluate='--task=retrieval'] \
      [--config.key=value ...]

`sweep()` stands beside `get_config()` and yields one dict of overrides a run:

    def sweep():
      for seed in range(3):
        yield {"seed": seed, "objective.confidence": "score"}

The key "config_argument" is what `get_config` is called with:
{"config_argument": "infonce"} runs --config=configs/x.py:infonce.

Without --run the commands are printed, one run a line, to be started anywhere;
--collect then makes the table. With --run they are started here, from the
root of the repository, and what has finished already is skipped.
"""

import shlex
import signal
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from calince_jax import cli
from calince_jax.errors import UserError
from launch import table
from launch.expand import expand
from launch.workers import run_all

CONFIG = config_flags.DEFINE_config_file("config", None, "with a sweep()")
WORKDIR = flags.DEFINE_string("workdir", None, "each run gets a folder in it")
RUN = flags.DEFINE_bool("run", False, "run here instead of printing")
COLLECT = flags.DEFINE_bool("collect", False, "only make the table")
NUM_WORKERS = flags.DEFINE_integer("num_workers", 1, "at a time", 1)
EVALUATE = flags.DEFINE_string(
  "evaluate", None, "evaluate each run, too, with these flags"
)
METRICS = flags.DEFINE_list(
  "metrics", [], "columns of the table; default: loss and all of eval/"
)


def main() -> None:
  """Prints the commands, or runs them and collects the table."""
  if CONFIG.value is None or not WORKDIR.value:
    raise UserError("give --config=FILE and --workdir=DIR")
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
  if not here:
    for run in runs:
      print(" && ".join(shlex.join(command) for command in run.commands))
    return
  workdir, failed = Path(WORKDIR.value), []
  if RUN.value:
    # A polite kill stops the runs as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
      failed = run_all(
        {workdir / run.name: run.commands for run in runs},
        num_workers=NUM_WORKERS.value,
      )
    except KeyboardInterrupt:
      print("stopped; the same command goes on", file=sys.stderr)
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
