"""Runs the noise study and writes its evidence; started again, it resumes.

    python -m benchmarks.noise_study [--corpus=shapes] [--out=DIR] \
      [--methods=infonce,cotrain] [--noise_rates=0.2,0.4] [--kinds=near] \
      [--num_seeds=5] [--num_workers=2] [--docs=docs] [--collect] \
      [--config.total_steps=300 ...]

--corpus is one of CORPORA of configs/noise_study.py, which is then made, or the
folder of a prepared data set with splits train, val and test: your own. The
command trains the runs of `sweep()`, each on one core so that several fit side
by side, evaluates recognition and video retrieval with the final parameters
where clips have labels, and reads their folders. It writes

    OUT/table.csv       one row a run
    OUT/summary.json    means, paired differences, intervals, verdicts
    DOCS/figures/NAME_*.svg
    DOCS/results.md     between its <!-- NAME --> marks

where NAME is `noise_study` for the shapes and noise_study_CORPUS for others,
OUT is runs/NAME, and DOCS is OUT: --docs=docs writes the project's own page.

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

from absl import flags
from ml_collections import config_flags

from benchmarks.noise_study import corpora
from benchmarks.noise_study.bars import MAIN_RATE
from benchmarks.noise_study.collect import collect
from benchmarks.noise_study.runs import TASKS, kind_of
from calince_jax import cli
from calince_jax.errors import UserError
from launch.expand import ARGUMENT, Run, expand, load
from launch.workers import run_all


def define_flags() -> None:
  """Defines the command line."""
  config_flags.DEFINE_config_file(
    "config",
    "configs/noise_study.py",
    "configuration of the study, with a sweep() and CORPORA",
  )
  flags.DEFINE_string(
    "corpus", corpora.DEFAULT, "one of CORPORA, or a prepared data set"
  )
  flags.DEFINE_string("out", None, "folder of the study; default: runs/NAME")
  flags.DEFINE_string(
    "docs", None, "folder of results.md and figures/; default: that of --out"
  )
  flags.DEFINE_list("methods", [], "some of METHODS; default: all")
  flags.DEFINE_list("noise_rates", [], "some of NOISE_RATES; default: all")
  flags.DEFINE_list("kinds", [], "some kinds of mismatches; default: all")
  flags.DEFINE_integer(
    "num_seeds", None, "seeds 0 to num_seeds - 1; default: all", 1
  )
  flags.DEFINE_integer("num_workers", 2, "runs side by side", 1)
  flags.DEFINE_bool(
    "collect", False, "read finished runs and write; train none"
  )


def main() -> None:
  """Makes the corpus, trains and evaluates the runs, writes the tables."""
  F = flags.FLAGS
  path = config_flags.get_config_filename(F["config"])
  study, name = load(path), corpora.section(F.corpus)
  out = Path(F.out or Path("runs") / name)
  cores = sorted(os.sched_getaffinity(0))
  if not F.collect and F.num_workers > len(cores):
    raise UserError(
      f"--num_workers={F.num_workers}: each takes one core and there are"
      f" {len(cores)}"
    )
  # A polite kill stops the runs as Ctrl-C does.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  named = F.corpus in study.CORPORA
  if F.collect:
    data = out / "data" if named else Path(F.corpus)
  else:
    data = corpora.open_corpus(study, F.corpus, out)
  shared = {
    **(study.CORPORA[F.corpus]["config"] if named else {}),
    **config_flags.get_override_values(F["config"]),
    "data.datasets": str(data),
  }
  runs = expand(
    path,
    shared,
    workdir=str(out),
    evaluate=None if F.collect else evaluation(data),
  )
  chosen = choose(
    study, runs, F.methods or study.METHODS, F.noise_rates, F.kinds, F.num_seeds
  )
  failed = []
  if not F.collect:
    print(f"{len(chosen)} of the {len(runs)} runs of {path}", flush=True)
    failed = run_all(
      {out / run.name: run.commands for run in chosen},
      num_workers=F.num_workers,
      environment=one_core(),
      cores=[{core} for core in cores[: F.num_workers]],
    )
  collect(study, runs, out, data, Path(F.docs or out), name)
  if failed:
    sys.exit(1)


def evaluation(data: Path) -> str | None:
  """The flags of evaluate; None where clips have no classes."""
  if not corpora.describe(data)["labels"]:
    return None
  return f"--task={','.join(TASKS)}"


def choose(
  study: ModuleType,
  runs: Sequence[Run],
  methods: Sequence[str],
  noise_rates: Sequence[str | float],
  kinds: Sequence[str],
  num_seeds: int | None,
) -> list[Run]:
  """The chosen runs, in the order in which they are trained.

  Args:
    study: the configuration's module.
    runs: of its sweep().
    methods: some of METHODS.
    noise_rates: some of NOISE_RATES; none: all.
    kinds: some kinds of mismatches; none: all.
    num_seeds: the first ones; None: all.

  Raises:
    UserError: one that the study does not have.
  """
  rates = [float(rate) for rate in noise_rates or study.NOISE_RATES]
  all_kinds = list(dict.fromkeys(map(kind_of, runs)))
  kinds = kinds or all_kinds
  count = study.NUM_SEEDS if num_seeds is None else num_seeds
  for flag, asked, known in (
    ("methods", methods, study.METHODS),
    ("noise_rates", rates, study.NOISE_RATES),
    ("kinds", kinds, all_kinds),
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
    kind = all_kinds.index(kind_of(run))
    return kind, rate != MAIN_RATE, study.NOISE_RATES.index(rate), seed, method

  return sorted(
    (
      run
      for run in runs
      if run.overrides[ARGUMENT] in methods
      and run.overrides["data.mismatch"] in rates
      and kind_of(run) in kinds
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


if __name__ == "__main__":
  define_flags()
  cli.run(main)
