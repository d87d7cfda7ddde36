"""Runs the noise study and writes its evidence; started again, it resumes.

    python -m benchmarks.noise_study --out=runs/noise_study \
      [--methods=infonce,cotrain] [--noise_rates=0.2,0.4] [--num_seeds=5] \
      [--num_workers=2] [--data=DATA] [--collect]

Makes the corpus of configs/noise_study.py (or takes a prepared data set with
splits train, val and test), trains the runs of its `sweep()`, each on one core
so that several fit side by side, and reads their folders. It writes

    OUT/table.csv       one row a run
    OUT/summary.json    means, paired differences, intervals, verdicts
    docs/figures/noise_study_*.svg
    docs/results.md     between its <!-- noise_study --> marks

With --collect it only reads and writes. Noise rate 0.4 comes first, and within
a noise rate all methods of one seed, so that a stopped study has whole tables.
`python -m benchmarks.noise_study.cost` times the steps, when nothing else runs.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from benchmarks.noise_study.bars import MAIN_RATE
from benchmarks.noise_study.collect import collect
from calince_jax import cli
from calince_jax.errors import UserError
from launch.expand import ARGUMENT, Run, expand, load
from launch.workers import run_all


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string(
    "config",
    "configs/noise_study.py",
    "configuration of the study, with a sweep()",
  )
  flags.DEFINE_string("out", "runs/noise_study", "folder of the study")
  flags.DEFINE_string("data", None, "a prepared data set; default: makes one")
  flags.DEFINE_string("docs", "docs", "folder of results.md and figures/")
  flags.DEFINE_list("methods", [], "some of METHODS; default: all")
  flags.DEFINE_list("noise_rates", [], "some of NOISE_RATES; default: all")
  flags.DEFINE_integer(
    "num_seeds", None, "seeds 0 to num_seeds - 1; default: all", 1
  )
  flags.DEFINE_integer("num_workers", 2, "runs side by side", 1)
  flags.DEFINE_bool(
    "collect", False, "read finished runs and write; train none"
  )


def main() -> None:
  """Makes the corpus, trains the runs, writes the tables."""
  F = flags.FLAGS
  study, out = load(F.config), Path(F.out)
  data = Path(F.data or out / "data")
  runs = expand(F.config, {"data.datasets": str(data)}, workdir=str(out))
  chosen = choose(
    study, runs, F.methods or study.METHODS, F.noise_rates, F.num_seeds
  )
  failed = []
  if not F.collect:
    cores = sorted(os.sched_getaffinity(0))
    if F.num_workers > len(cores):
      raise UserError(
        f"--num_workers={F.num_workers}: each takes one core and there are"
        f" {len(cores)}"
      )
    # A polite kill stops the runs as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if F.data is None:
      make_corpus(study, out)
    print(f"{len(chosen)} of the {len(runs)} runs of {F.config}", flush=True)
    failed = run_all(
      {out / run.name: run.commands for run in chosen},
      num_workers=F.num_workers,
      environment=one_core(),
      cores=[{core} for core in cores[: F.num_workers]],
    )
  collect(study, runs, out, data, Path(F.docs))
  if failed:
    sys.exit(1)


def choose(
  study: ModuleType,
  runs: Sequence[Run],
  methods: Sequence[str],
  noise_rates: Sequence[str | float],
  num_seeds: int | None,
) -> list[Run]:
  """The chosen runs, in the order in which they are trained.

  Args:
    study: the configuration's module.
    runs: of its sweep().
    methods: some of METHODS.
    noise_rates: some of NOISE_RATES; none: all.
    num_seeds: the first ones; None: all.

  Raises:
    UserError: one that the study does not have.
  """
  rates = [float(rate) for rate in noise_rates or study.NOISE_RATES]
  count = study.NUM_SEEDS if num_seeds is None else num_seeds
  for flag, asked, known in (
    ("methods", methods, study.METHODS),
    ("noise_rates", rates, study.NOISE_RATES),
    ("num_seeds", range(count), range(study.NUM_SEEDS)),
  ):
    unknown = [x for x in asked if x not in known]
    if unknown:
      raise UserError(
        f"--{flag}: the study has no {unknown[0]!r}; it has"
        f" {', '.join(map(str, known))}"
      )

  def place(run):
    rate, seed = run.overrides["data.mismatch"], run.overrides["seed"]
    method = study.METHODS.index(run.overrides[ARGUMENT])
    return rate != MAIN_RATE, study.NOISE_RATES.index(rate), seed, method

  return sorted(
    (
      run
      for run in runs
      if run.overrides[ARGUMENT] in methods
      and run.overrides["data.mismatch"] in rates
      and run.overrides["seed"] < count
    ),
    key=place,
  )


def one_core() -> dict[str, str]:
  """Variables that keep a run to one thread of computation.

  So the numbers do not depend on the number of cores, nor on what else runs.
  """
  given = os.environ.get("XLA_FLAGS")
  single = "--xla_cpu_multi_thread_eigen=false"
  return {
    "XLA_FLAGS": f"{given} {single}" if given else single,
    "OMP_NUM_THREADS": "1",
    # glibc: keep freed memory. A step's buffers are otherwise mapped anew at
    # every step, which takes a third of the time of so small a model.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
  }


def make_corpus(study: ModuleType, out: Path) -> None:
  """Makes OUT/corpus/clips and prepares OUT/data, unless they are there.

  Raises:
    UserError: it failed.
  """
  folder = out / "corpus"
  clips = folder / "synthetic"
  python = (sys.executable, "-m")
  commands = [
    (
      *python,
      "calince_jax.data.synthetic",
      f"--out={clips}",
      *as_flags(study.CORPUS),
    ),
    (
      *python,
      "calince_jax.prepare",
      f"--manifest={clips / 'manifest.csv'}",
      f"--out={out / 'data'}",
      *as_flags(study.PREPARE),
    ),
  ]
  if run_all({folder: commands}, num_workers=1):
    raise UserError("the corpus could not be made; see above")


def as_flags(values: dict[str, Any]) -> list[str]:
  """The values as flags of a command line."""
  return [f"--{name}={value}" for name, value in values.items()]


if __name__ == "__main__":
  define_flags()
  cli.run(main)
