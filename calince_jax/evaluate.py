"""Evaluates a run on a prepared data set; results go to WORKDIR/eval/.

    python -m calince_jax.evaluate --workdir=DIR --task=retrieval \
      [--data=DATA] [--split=test]

Tasks, several separated by commas:
  retrieval        zero-shot, text to video and video to text
  video_retrieval  by class: queries of --split, gallery of --train_split
  recognition      a linear probe on frozen features of --train_split
  calibration      how well the score tells mismatched pairs of --train_split
"""

import csv
import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import flags

from calince_jax import build, command_line, compile_cache, encode_clips
from calince_jax.data.clip_dataset import ClipReader
from calince_jax.errors import UserError, check_choice
from calince_jax.evals import calibration, ranks, recognition, retrieval
from calince_jax.evals.thumbnails import film_strip
from calince_jax.run_model import PARAMS, open_run

SHOWN_HITS = 5  # of each query in the report


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; `define_flags` says what each is."""

  workdir: str
  task: str = "retrieval"
  data: str | None = None
  split: str = "test"
  train_split: str = "train"
  step: int | None = None
  params: str = PARAMS[0]
  batch_size: int = 32
  num_clips: int = 1
  num_crops: int = 1
  center: bool = True
  seed: int = 0
  gallery: int = 8
  worst: int = 48


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
  number("batch_size", Options.batch_size, "clips encoded at a time", 1)
  number("num_clips", Options.num_clips, "test views along time", 1)
  number("num_crops", Options.num_crops, "test views across the frame", 1)
  flags.DEFINE_bool("center", Options.center, "mean-centre video_retrieval")
  number("seed", Options.seed, "of the probe and of the queries shown")
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
  folder = Path(options.workdir) / "eval"
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


class Evaluation:
  """A model and a data set; each split is encoded once for all tasks."""

  def __init__(self, options: Options):
    """Opens both; UserError where one is not there."""
    self.options = options
    self.model, self.step, config = open_run(
      options.workdir, step=options.step, params=options.params
    )
    self.data = options.data or build.data_mix(config)[0][0]
    self.sampling = build.sampling(config)

  @functools.cache  # noqa: B019  as long as the program runs
  def reader(self, split: str) -> ClipReader:
    """The records of a split."""
    return ClipReader(self.data, split)

  @functools.cache  # noqa: B019
  def encoded(self, split: str) -> dict[str, Any]:
    """See encode_clips.encode_split."""
    return encode_clips.encode_split(
      self.model,
      self.reader(split),
      self.sampling,
      batch_size=self.options.batch_size,
      num_clips=self.options.num_clips,
      num_crops=self.options.num_crops,
    )

  def labelled(self, split: str) -> dict[str, Any]:
    """`features` [N, width], `labels`, `groups` of the clips with a label."""
    encoded = self.encoded(split)
    kept = [i for i, clip in enumerate(encoded["clips"]) if clip["label"]]
    if not kept:
      raise UserError(
        f"no clip of split {split!r} of {self.data} has a label; give the"
        " manifest a column 'label' and prepare it anew"
      )
    clips = [encoded["clips"][i] for i in kept]
    return {
      "features": encoded["feature"][kept],
      "labels": [clip["label"] for clip in clips],
      "groups": [clip["group"] or clip["id"] for clip in clips],
    }

  def strip(self, split: str, record: int) -> str:
    """A picture of a clip."""
    return film_strip(self.reader(split).read([record])[0]["frames"])

  def protocol(self) -> dict[str, Any]:
    """What every result file states."""
    o, c = self.options, self.model.config
    return {
      "data": Path(self.data).resolve().name,
      "split": o.split,
      "checkpoint_step": self.step,
      "params": o.params,
      "frames": c.num_frames,
      "resolution": c.image_size,
      "views": f"{o.num_clips} clips x {o.num_crops} crops",
      "dtype": c.dtype,
      "seed": o.seed,
    }


def retrieval_task(e: Evaluation) -> dict[str, Any]:
  """Zero-shot retrieval in both directions, and what the report shows."""
  encoded = e.encoded(e.options.split)
  clips = encoded["clips"]
  texts = [text for clip in clips for text in clip["texts"]]
  video_of_text = np.repeat(
    np.arange(len(clips)), [len(clip["texts"]) for clip in clips]
  )
  arrays = (
    encode_clips.encode_texts(e.model, texts, batch_size=e.options.batch_size),
    encoded["embedding"],
    video_of_text,
  )
  temperature = 1 / e.model.logit_scale
  return {
    "protocol": {
      "task": "zero-shot text-video retrieval",
      "clips": len(clips),
      "queries": len(texts),
      "tie_rule": retrieval.TIE_RULE,
      "dual_softmax_temperature": temperature,
    },
    "metrics": retrieval.text_video_metrics(*arrays),
    "chance": retrieval.text_video_chance(video_of_text, len(clips)),
    "dual_softmax": retrieval.text_video_metrics(
      *arrays, dual_softmax_temperature=temperature
    ),
    "gallery": gallery(e, texts, *arrays),
  }


def gallery(
  e: Evaluation,
  texts: Sequence[str],
  text_embedding: np.ndarray,
  video_embedding: np.ndarray,
  video_of_text: np.ndarray,
) -> list[dict[str, Any]]:
  """A few queries, drawn at random, and the clips that they find."""
  clips = e.encoded(e.options.split)["clips"]
  rng = np.random.default_rng(e.options.seed)
  count = min(e.options.gallery, len(texts))
  chosen = np.sort(rng.choice(len(texts), count, replace=False))
  scores = ranks.inner_products(text_embedding[chosen], video_embedding)
  relevant = video_of_text[chosen][:, None] == np.arange(len(clips))
  above, wrong, right = ranks.count(scores, relevant)
  return [
    {
      "query": texts[q],
      "rank": float(1 + above[i] + wrong[i] / (right[i] + 1)),
      "hits": [
        {
          "id": clips[v]["id"],
          "text": clips[v]["texts"][0],
          "score": float(scores[i, v]),
          "right": bool(relevant[i, v]),
          "thumbnail": e.strip(e.options.split, v),
        }
        for v in np.argsort(-scores[i], kind="stable")[:SHOWN_HITS]
      ],
    }
    for i, q in enumerate(chosen)
  ]


def video_retrieval_task(e: Evaluation) -> dict[str, Any]:
  """R@k: is any of the k nearest training clips of the query's class?"""
  queries = e.labelled(e.options.split)
  others = e.labelled(e.options.train_split)
  result = retrieval.class_retrieval_metrics(
    queries["features"],
    queries["labels"],
    others["features"],
    others["labels"],
    center=e.options.center,
  )
  return result | {
    "protocol": {
      "task": "video retrieval by class, features before the projection",
      "queries": len(queries["labels"]),
      "gallery": f"{len(others['labels'])} clips of {e.options.train_split}",
      "classes": len(set(others["labels"])),
      "mean_centred": e.options.center,
    },
  }


def recognition_task(e: Evaluation) -> dict[str, Any]:
  """A linear classifier on frozen features."""
  train = e.labelled(e.options.train_split)
  test = e.labelled(e.options.split)
  result = recognition.linear_probe(
    train["features"],
    train["labels"],
    test["features"],
    test["labels"],
    seed=e.options.seed,
    train_groups=train["groups"],
  )
  task = "linear probe on frozen features before the projection"
  result["protocol"] = {"task": task} | result["protocol"]
  return result


def calibration_task(e: Evaluation) -> dict[str, Any]:
  """The score of every pair of the training split against the known truth."""
  split = e.options.train_split
  pairs = encode_clips.score_pairs(
    e.model, e.reader(split), e.sampling, batch_size=e.options.batch_size
  )
  pairs.sort(key=lambda pair: pair["logit"])
  matched = np.array([pair["matched"] for pair in pairs], np.int8)
  confidence, logit, cosine = (
    np.array([pair[name] for pair in pairs], np.float32)
    for name in ("confidence", "logit", "cosine")
  )
  result = calibration.calibration_report(confidence, logit, matched)
  known = result["metrics"]
  if "auc" in known:
    by_cosine = calibration.calibration_report(confidence, cosine, matched)
    known["auc_cosine"] = by_cosine["metrics"]["auc"]
  known["noise_rate_estimate"] = e.model.calibration["noise_rate"]
  return result | {
    "protocol": {
      "task": "correspondence score of the given pairs",
      "split": split,
      "pairs": len(pairs),
    },
    "pairs": pairs,
    "worst": [
      {
        "id": pair["id"],
        "text": pair["text"],
        "confidence": pair["confidence"],
        "matched": None if pair["matched"] < 0 else pair["matched"],
        "thumbnail": e.strip(split, pair["record"]),
      }
      for pair in pairs[: e.options.worst]
    ],
  }


TASKS = {
  "retrieval": retrieval_task,
  "video_retrieval": video_retrieval_task,
  "recognition": recognition_task,
  "calibration": calibration_task,
}


def write_pairs(path: Path, pairs: Sequence[dict[str, Any]]) -> None:
  """Every pair, the least trusted first."""
  columns = ["pair_index", "id", "text", "confidence", "logit", "cosine"]
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(pairs)
  print(f"wrote {path}", flush=True)


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
  command_line.run(lambda: evaluate(command_line.options(Options)))
