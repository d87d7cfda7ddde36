"""Evaluates a run on a prepared data set; results go to WORKDIR/eval/.

    python -m calince_jax.evaluate --workdir=DIR --task=retrieval
        [--data=DATA] [--split=test]

Tasks, several separated by commas:
  retrieval        zero-shot, text to video and video to text
  video_retrieval  by class: queries of --split, gallery of --train_split
  recognition      a linear probe on frozen features of --train_split
  classification   by the classifier that finetune has trained
  zero_shot        the class whose prompts a clip is nearest to
  calibration      how well mismatched pairs of --train_split are told apart

--protocol=msrvtt_1ka and the like (docs/evaluation.md) choose task, split and
test views, and say what is missing of the test set.

Without a known truth, make one: --data=DATA --task=calibration --mismatch=0.3
exchanges the captions of 30 % of the clips of --train_split. On the run's own
data the default is what the run was trained with.
"""

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import flags

from calince_jax import cli
from calince_jax.data.input.mismatch_kinds import KINDS
from calince_jax.evals import protocols, results, tasks
from calince_jax.evals.tasks import Options
from calince_jax.files import check_place
from calince_jax.inference.from_run import PARAMS
from calince_jax.runtime import compile_cache


def define_flags() -> None:
  """Defines the command line."""
  text, number = flags.DEFINE_string, flags.DEFINE_integer
  text("workdir", None, "The run folder (--workdir of train).")
  text(
    "protocol",
    None,
    f"A published protocol: {', '.join(protocols.PROTOCOLS)}.",
  )
  text("task", Options.task, "The tasks, separated by commas; see above.")
  text(
    "data",
    None,
    "The prepared data set; default: the first one that the run trained on.",
  )
  text("split", Options.split, "The split that is evaluated.")
  text(
    "train_split",
    Options.train_split,
    "The split whose clips are the gallery of video_retrieval and train the"
    " probe of recognition, and whose pairs calibration evaluates.",
  )
  number("step", None, "The step of the checkpoint; default: the latest.")
  flags.DEFINE_enum(
    "params",
    Options.params,
    PARAMS,
    "Which parameters to use: their moving average or the last ones.",
  )
  number(
    "batch_size",
    Options.batch_size,
    "The number of clips that are encoded at a time.",
    1,
    2**20,
  )
  number(
    "num_clips",
    Options.num_clips,
    "The number of test views along time.",
    1,
    1000,
  )
  number(
    "num_crops",
    Options.num_crops,
    "The number of test views across the frame.",
    1,
    1000,
  )
  flags.DEFINE_bool(
    "center",
    Options.center,
    "Whether video_retrieval subtracts each split's mean feature.",
  )
  number(
    "seed",
    Options.seed,
    "The seed of the probe's folds, of the negatives and of the example"
    " queries.",
    0,
    2**31,
  )
  flags.DEFINE_float(
    "mismatch",
    None,
    "The share of --train_split's clips whose captions are exchanged; default:"
    " as in training on the run's own data, else none.",
    0.0,
    1.0,
  )
  number(
    "mismatch_seed",
    None,
    "The seed of the exchanged captions; default: the run's.",
    0,
    2**31,
  )
  flags.DEFINE_enum(
    "mismatch_kind",
    None,
    list(KINDS),
    "Which captions are exchanged, see configs/base.py; default: the run's.",
  )
  number(
    "report_queries",
    Options.report_queries,
    "The number of example text queries in the report.",
    0,
  )
  number(
    "report_worst_pairs",
    Options.report_worst_pairs,
    "The number of least trusted pairs in the report.",
    0,
  )
  flags.mark_flags_as_required(["workdir"])


def evaluate(options: Options) -> dict[str, dict[str, Any]]:
  """Runs the tasks; writes, prints and returns the result of each."""
  check_place("--workdir", options.workdir, bucket=True)
  compile_cache.enable()
  return results.save(options.workdir, tasks.run(options))


if __name__ == "__main__":
  define_flags()
  cli.run(lambda: evaluate(cli.options(Options)))
