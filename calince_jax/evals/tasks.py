"""The four evaluation tasks, each a function of an Evaluation.

A task returns `protocol`, `metrics`, `chance` and what the report shows of it
(evals/report.py).
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calince_jax import config as config_lib
from calince_jax.data.input.label_noise import MismatchedReader, mismatched
from calince_jax.data.records.reader import ClipReader
from calince_jax.errors import UserError
from calince_jax.evals import calibration_metrics, ranks, recognition, retrieval
from calince_jax.evals.report.thumbnails import film_strip
from calince_jax.inference import encode
from calince_jax.inference.from_run import PARAMS, open_run
from calince_jax.losses import calibration as calibration_lib

SHOWN_HITS = 5  # of each query in the report
NUM_NEGATIVES = 4  # others' captions that each clip is scored with


@dataclasses.dataclass(frozen=True)
class Options:
  """What is evaluated; evaluate.py's flags say what each is."""

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
  mismatch: float | None = None
  mismatch_seed: int | None = None
  gallery: int = 8
  worst: int = 48


class Evaluation:
  """A model and a data set; each split is encoded once for all tasks."""

  def __init__(self, options: Options):
    """Opens both; UserError where one is not there."""
    self.options = options
    self.model, self.step, self.config = open_run(
      options.workdir, step=options.step, params=options.params
    )
    self.data = options.data or config_lib.data_mix(self.config)[0][0]
    self.sampling = config_lib.sampling(self.config)

  @functools.cache  # noqa: B019  as long as the program runs
  def reader(self, split: str) -> ClipReader | MismatchedReader:
    """The records of a split, captions exchanged as `mismatch` says."""
    return mismatched(ClipReader(self.data, split), *self.mismatch(split))

  def mismatch(self, split: str) -> tuple[float, int]:
    """The share of a split's clips whose captions are exchanged; the seed.

    On the run's own data it is what the run was trained with. --mismatch
    overrules it for --train_split, on any data.
    """
    options, trained = self.options, self.config["data"]
    share, seed = 0.0, trained["mismatch_seed"]
    if options.data is None and split == trained["split"]:
      share = trained["mismatch"]
    if options.mismatch is not None and split == options.train_split:
      share = options.mismatch
    if options.mismatch_seed is not None:
      seed = options.mismatch_seed
    return share, seed

  def exchanged(self, split: str) -> dict[str, Any]:
    """What the protocol says of exchanged captions, where there are any."""
    share, seed = self.mismatch(split)
    if not share:
      return {}
    return {"captions exchanged": f"share {share:g}, seed {seed}"}

  @functools.cache  # noqa: B019
  def encoded(self, split: str) -> dict[str, Any]:
    """See encode_clips.encode_split."""
    return encode.encode_split(
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
    encode.encode_texts(e.model, texts, batch_size=e.options.batch_size),
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
    }
    | e.exchanged(e.options.split),
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
  """How far each pair of the training split is to be trusted.

  Noise rate and posterior are those of this data set: its given pairs are
  compared with its own clips under others' captions.
  """
  split = e.options.train_split
  pairs, scores = encode.score_pairs(
    e.model,
    e.reader(split),
    e.sampling,
    batch_size=e.options.batch_size,
    num_negatives=NUM_NEGATIVES,
    seed=e.options.seed,
  )
  judged = judge(pairs, scores, e.model.calibration["score"])
  trained = e.model.calibration["noise_rate"]
  judged["metrics"]["noise_rate_in_training"] = trained
  pairs = sorted(pairs, key=lambda pair: pair["score"])
  return judged | {
    "protocol": {
      "task": "posterior that each given pair is clean",
      "split": split,
      "pairs": len(pairs),
      "score": e.model.calibration["score"],
      "negatives": f"{NUM_NEGATIVES} captions of other clips for each pair",
    }
    | e.exchanged(split),
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


def judge(
  pairs: list[dict[str, Any]], scores: dict[str, np.ndarray], score: str
) -> dict[str, Any]:
  """Adds `score`, `confidence` and the single scores to `pairs`, and judges.

  Args:
    pairs: P of them, with `matched`.
    scores: from encode_clips.score_pairs, [P, 1 + K] each.
    score: one of losses.calibration.SCORES.

  Returns:
    See evals.calibration.calibration_report; its metrics also say
    `noise_rate_estimate` and the AUC of each single score.
  """
  state, x = calibration_lib.observe(
    calibration_lib.init_state(0), scores, score=score, decay=0.0
  )
  frozen = calibration_lib.freeze(state, score=score, noise_rate=None)
  given = {name: values[:, 0] for name, values in scores.items()}
  _, confidence = calibration_lib.frozen_confidence(frozen, given)
  x, confidence = np.asarray(x), np.asarray(confidence)
  for i, pair in enumerate(pairs):
    pair |= {"score": float(x[i]), "confidence": float(confidence[i])}
    pair |= {name: float(values[i]) for name, values in given.items()}
  matched = np.array([pair["matched"] for pair in pairs], np.int8)
  result = calibration_metrics.calibration_report(confidence, x, matched)
  known = result["metrics"]
  if "auc" in known:
    for name, values in given.items():
      alone = calibration_metrics.calibration_report(
        confidence, values, matched
      )
      known[f"auc_{name}"] = alone["metrics"]["auc"]
  known["noise_rate_estimate"] = frozen["noise_rate"]
  return result


TASKS = {
  "retrieval": retrieval_task,
  "video_retrieval": video_retrieval_task,
  "recognition": recognition_task,
  "calibration": calibration_task,
}
