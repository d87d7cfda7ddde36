"""Evaluates a run on a prepared data set; results go to WORKDIR/eval/.

    python -m calince_jax.evaluate --workdir=DIR --task=retrieval \
      [--data=DATA] [--split=test]

Tasks, several separated by commas:
  retrieval        zero-shot, text to video and video to text
  video_retrieval  by class: queries of --split, gallery of --train_split
  recognition      a linear probe on frozen features of --train_split
  calibration      how well the score tells mismatched pairs of --train_split

Without a known truth, make one: --data=DATA --task=calibration --mismatch=0.3
exchanges the captions of 30 % of the clips of --train_split. On the run's own
data the default is what the run was trained with.
"""

import csv
import io
import json
import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import flags
from etils import epath

from calince_jax import cli
from calince_jax.errors import check_choice
from calince_jax.evals.tasks import TASKS, Evaluation, Options
from calince_jax.inference.from_run import PARAMS
from calince_jax.runtime import compile_cache


def define_flags() -> None:
  """Defines the command line."""
  text, number = flags.DEFINE_string, flags.DEFINE_integer
  text("workdir", None, "of the run")
  text("task", Options.task, "see above")
  text("data", None, "prepared folder; default: the run's first")
  text("split", Options.split, "what is evaluated")
  text("train_split", Options.train_split, "gallery, probe, calibration")
  number("step", None, "of the checkpoint; default: the latest")
  flags.DEFINE_enum("params", Options.params, PARAMS, "which parameters")
  number("batch_size", Options.batch_size, "clips encoded at a time", 1, 2**20)
  number("num_clips", Options.num_clips, "test views along time", 1, 1000)
  number("num_crops", Options.num_crops, "test views across it", 1, 1000)
  flags.DEFINE_bool("center", Options.center, "mean-centre video_retrieval")
  number("seed", Options.seed, "of the probe, of the queries shown", 0, 2**31)
  flags.DEFINE_float("mismatch", None, "share of exchanged captions", 0.0, 1.0)
  number("mismatch_seed", None, "of that; default: the run's", 0, 2**31)
  number("gallery", Options.gallery, "text queries in the report", 0)
  number("worst", Options.worst, "low-scored pairs in the report", 0)
  flags.mark_flags_as_required(["workdir"])


def evaluate(options: Options) -> dict[str, dict[str, Any]]:
  """Runs the tasks; writes and prints what each gives, and returns it all."""
  compile_cache.enable()
  names = options.task.split(",")
  for name in names:
    check_choice("--task", name, list(TASKS))
  evaluation = Evaluation(options)
  folder = epath.Path(options.workdir) / "eval"
  folder.mkdir(exist_ok=True)
  results = {}
  for name in names:
    result = TASKS[name](evaluation)
    result["protocol"] = evaluation.protocol() | result["protocol"]
    print_table(name, result)
    if "pairs" in result:
      write_pairs(folder / "pairs.csv", result.pop("pairs"))
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}", flush=True)
    results[name] = result
  return results


def write_pairs(path: epath.Path, pairs: Sequence[dict[str, Any]]) -> None:
  """Every pair, the least trusted first."""
  columns = ["pair_index", "id", "text", "confidence", "score"]
  columns += [name for name in ("head", "cosine") if name in pairs[0]]
  file = io.StringIO(newline="")
  writer = csv.DictWriter(file, columns, extrasaction="ignore")
  writer.writeheader()
  for pair in pairs:
    texts = {name: harmless(pair[name]) for name in ("id", "text")}
    writer.writerow(pair | texts)
  path.write_text(file.getvalue())
  print(f"wrote {path}", flush=True)


def harmless(text: str) -> str:
  """`text` behind a ' where a spreadsheet would take it for a formula."""
  return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def print_table(task: str, result: dict[str, Any]) -> None:
  """The metrics of a task, chance beside each."""
  names = ("metrics", "chance", "majority", "dual_softmax")
  columns = [name for name in names if name in result]
  print(f"\n{task}, split {result['protocol']['split']}")
  print(f"  {'':26}" + "".join(f"{name:>14}" for name in columns))
  for metric in result["metrics"]:
    cells = [
      f"{result[name][metric]:.3f}" if metric in result[name] else ""
      for name in columns
    ]
    print(f"  {metric:26}" + "".join(f"{cell:>14}" for cell in cells))


if __name__ == "__main__":
  define_flags()
  cli.run(lambda: evaluate(cli.options(Options)))
