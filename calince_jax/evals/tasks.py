"""The evaluation tasks, each a function of an Evaluation.

A task returns `protocol`, `metrics`, `chance` and examples for the report
(evals/report/).
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from calince_jax import config as config_lib
from calince_jax.data.input.label_noise import MismatchedReader, mismatched
from calince_jax.data.records.reader import ClipReader
from calince_jax.errors import UserError, check_choice
from calince_jax.evals import (
  calibration_metrics,
  classification,
  protocols,
  recognition,
  retrieval,
  zero_shot,
)
from calince_jax.evals.report import examples
from calince_jax.evals.report.thumbnails import film_strip
from calince_jax.inference import encode, score
from calince_jax.inference.from_run import PARAMS, open_run

LARGEST_DUAL_SOFTMAX = 100_000_000  # similarities, of 8 bytes
NUM_NEGATIVES = 4  # others' captions that each clip is compared with


@dataclasses.dataclass(frozen=True)
class Options:
  """What is evaluated; the flags of evaluate.py say what each option is."""

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
  mismatch_kind: str | None = None
  report_queries: int = 8
  report_worst_pairs: int = 48
  protocol: str | None = None


def run(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the name and the result of each task in `options.task`.

  Raises:
    UserError: an unknown task, or what is asked for is not there.
  """
  if options.protocol is not None:
    options = by_protocol(options)
  names = options.task.split(",")
  for name in names:
    check_choice("--task", name, list(TASKS))
  evaluation = Evaluation(options)
  for name in names:
    result = TASKS[name](evaluation)
    result["protocol"] = evaluation.protocol() | result["protocol"]
    yield name, result


def by_protocol(options: Options) -> Options:
  """The options that --protocol stands for.

  Raises:
    UserError: it is unknown, or another option contradicts it.
  """
  protocol = protocols.named(options.protocol)
  wanted = {
    "split": protocol.split,
    "num_clips": protocol.num_clips,
    "num_crops": protocol.num_crops,
  }
  recognized = ("recognition", "classification", "zero_shot", "video_retrieval")
  if protocol.task == protocols.RETRIEVAL or options.task not in recognized:
    wanted["task"] = protocol.task
  usual = Options(options.workdir)
  for name, value in wanted.items():
    given = getattr(options, name)
    if given not in (value, getattr(usual, name)):
      raise UserError(
        f"--protocol={options.protocol} has {name}={value}, not {given}"
      )
  return dataclasses.replace(options, **wanted)


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

  def mismatch(self, split: str) -> tuple[float, int, str]:
    """Share of a split's clips with wrong captions; the seed, the kind.

    On the run's own data the run's setting applies. --mismatch overrules it for
    --train_split, on any data.
    """
    options, trained = self.options, self.config["data"]
    share, seed = 0.0, trained["mismatch_seed"]
    if options.data is None and split == trained["split"]:
      share = trained["mismatch"]
    if options.mismatch is not None and split == options.train_split:
      share = options.mismatch
    if options.mismatch_seed is not None:
      seed = options.mismatch_seed
    return share, seed, options.mismatch_kind or trained["mismatch_kind"]

  def exchanged(self, split: str) -> dict[str, Any]:
    """A line of the protocol on exchanged captions, where there are any."""
    share, seed, kind = self.mismatch(split)
    if not share:
      return {}
    return {"captions exchanged": f"share {share:g}, {kind}, seed {seed}"}

  @functools.cache  # noqa: B019
  def opened(self, split: str) -> encode.Split:
    """The split, ready to be encoded."""
    return encode.open_split(
      self.reader(split),
      self.model.tokenizer,
      self.sampling,
      text_length=self.model.config.text_length,
      batch_size=self.options.batch_size,
      num_clips=self.options.num_clips,
      num_crops=self.options.num_crops,
    )

  @functools.cache  # noqa: B019
  def videos(self, split: str) -> dict[str, np.ndarray]:
    """`embedding` [N, D] and `feature` [N, width] of each clip of a split.

    And `class_probability` [N, C], where the model has classes.
    """

    def encode_video(video):
      outputs = self.model.video_outputs(video)
      wanted = {name: outputs[name] for name in ("embedding", "feature")}
      if self.model.config.classes:
        wanted["class_probability"] = jax.nn.softmax(outputs["class_logits"])
      return wanted

    opened = self.opened(split)
    sums = encode.encode_videos(opened, encode_video)
    return encode.mean_over_views(sums, opened.num_views)

  def texts(self, split: str) -> np.ndarray:
    """The embeddings of a split's captions, float32 [Q, D]."""
    return encode.encode_texts(
      self.opened(split),
      lambda ids, mask: self.model.text_outputs(ids, mask)["embedding"],
    )

  def labelled(self, split: str) -> dict[str, Any]:
    """`features` [N, width], `labels`, `groups` of the clips with a label."""
    clips = self.opened(split).clips
    kept = [i for i, clip in enumerate(clips) if clip["label"]]
    if not kept:
      raise UserError(
        f"no clip of split {split!r} of {self.data} has a label; give the"
        " manifest a column 'label' and run prepare again"
      )
    return {
      "features": self.videos(split)["feature"][kept],
      "labels": [clips[i]["label"] for i in kept],
      "groups": [clips[i]["group"] or clips[i]["id"] for i in kept],
    }

  def strip(self, split: str, record: int) -> str:
    """A picture of a clip, a base64 JPEG."""
    return film_strip(self.reader(split).read([record])[0]["frames"])

  def protocol(self) -> dict[str, Any]:
    """The part of the protocol that all tasks share."""
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
    } | self._published()

  def _published(self) -> dict[str, str]:
    """Which published protocol it is, and what is missing of its test set."""
    if self.options.protocol is None:
      return {}
    opened = self.opened(self.options.split)
    return protocols.describe(
      self.options.protocol, len(opened.clips), len(opened.video_of_text)
    )


def retrieval_task(e: Evaluation) -> dict[str, Any]:
  """Zero-shot retrieval in both directions, and example queries."""
  split = e.options.split
  opened = e.opened(split)
  arrays = (e.texts(split), e.videos(split)["embedding"], opened.video_of_text)
  temperature = 1 / e.model.logit_scale
  ranked = retrieval.rank_both_ways(*arrays)
  dual, why = {}, {}
  if len(arrays[0]) * len(arrays[1]) <= LARGEST_DUAL_SOFTMAX:
    dual["dual_softmax"] = retrieval.text_video_metrics(
      *arrays, dual_softmax_temperature=temperature
    )
  else:  # it needs all similarities at once, ranking does not
    why["dual_softmax"] = "left out: more than 100 million similarities"
  return {
    "protocol": {
      "task": "zero-shot text-video retrieval",
      "clips": len(opened.clips),
      "queries": len(opened.video_of_text),
      "tie_rule": retrieval.TIE_RULE,
      "dual_softmax_temperature": temperature,
    }
    | why
    | e.exchanged(split),
    "metrics": retrieval.metrics_of(ranked),
    "intervals": retrieval.intervals_of(ranked, e.options.seed),
    "chance": retrieval.text_video_chance(
      opened.video_of_text, len(opened.clips)
    ),
    "queries": examples.queries(
      *arrays,
      opened.clips,
      lambda record: e.strip(split, record),
      count=e.options.report_queries,
      seed=e.options.seed,
    ),
  } | dual


def intervals(
  metrics: dict[str, float], counts: dict[str, int]
) -> dict[str, list[float]]:
  """[low, high] of each R@k in percent, 95 %, queries taken as independent.

  Args:
    metrics: in percent.
    counts: queries of the metrics whose names begin like this.
  """
  return {
    name: recognition.wilson(value * count / 100, count)
    for start, count in counts.items()
    for name, value in metrics.items()
    if name.startswith(start) and "R@" in name
  }


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
    "intervals": intervals(result["metrics"], {"R@": len(queries["labels"])}),
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


def classification_task(e: Evaluation) -> dict[str, Any]:
  """The model's own classifier, its probabilities averaged over the views."""
  split, classes = e.options.split, e.model.config.classes
  if not classes:
    raise UserError(
      "--task=classification needs a model with a classifier, which python -m"
      " calince_jax.finetune --config=configs/finetune_recognition.py trains"
    )
  result = classification.accuracy(
    e.videos(split)["class_probability"],
    classes,
    [clip["label"] for clip in e.opened(split).clips],
    seed=e.options.seed,
  )
  task = "classification by the fine-tuned classifier"
  result["protocol"] = {"task": task} | result["protocol"]
  return result


def zero_shot_task(e: Evaluation) -> dict[str, Any]:
  """The class whose prompts are nearest to a clip; nothing is trained."""
  split = e.options.split
  labels = [clip["label"] for clip in e.opened(split).clips]
  classes = sorted({label for label in labels if label})
  if len(classes) < 2:
    raise UserError(
      f"--task=zero_shot needs two labels, and split {split!r} of {e.data} has"
      f" {len(classes)}; give the manifest a column 'label' and run prepare"
      " again"
    )
  prompts = zero_shot.class_embeddings(classes, e.model.encode_text)
  result = classification.accuracy(
    e.videos(split)["embedding"] @ prompts.T,
    classes,
    labels,
    seed=e.options.seed,
  )
  task = "zero-shot classification by prompts"
  result["protocol"] = {
    "task": task,
    "prompts": " | ".join(zero_shot.PROMPTS),
  } | result["protocol"]
  return result


def calibration_task(e: Evaluation) -> dict[str, Any]:
  """How far each pair of the training split is to be trusted.

  Noise rate and posterior are those of this data set: its given pairs are
  compared with its own clips under others' captions.
  """
  split, scorer = e.options.train_split, e.model.calibration["scorer"]
  pairs, outputs = score.score_pairs(
    e.model,
    e.reader(split),
    e.sampling,
    batch_size=e.options.batch_size,
    num_negatives=NUM_NEGATIVES,
    seed=e.options.seed,
  )
  result = compare_with_truth(pairs, outputs, scorer)
  trained = e.model.calibration["noise_rate"]
  result["metrics"]["noise_rate_in_training"] = trained
  pairs = sorted(pairs, key=lambda pair: pair["alignment_score"])
  return result | {
    "protocol": {
      "task": "confidence that each given pair is matched",
      "split": split,
      "pairs": len(pairs),
      "scorer": scorer,
      "negatives": f"{NUM_NEGATIVES} captions of other clips for each pair",
    }
    | e.exchanged(split),
    "pairs": pairs,
    "worst": examples.worst_pairs(
      pairs[: e.options.report_worst_pairs],
      lambda record: e.strip(split, record),
    ),
  }


def compare_with_truth(
  pairs: list[dict[str, Any]], outputs: dict[str, np.ndarray], scorer: str
) -> dict[str, Any]:
  """Adds alignment scores and confidences to `pairs`, and evaluates them.

  Args:
    pairs: P of them, with `matched`; see score.add_confidence.
    outputs: from score.score_pairs, [P, 1 + K] each.
    scorer: one of losses.calibration.SCORERS.

  Returns:
    See calibration_metrics.calibration_report; its metrics hold as well
    `noise_rate_estimate` and the AUC of each single output.
  """
  noise_rate = score.add_confidence(pairs, outputs, scorer)
  confidence, x, matched = (
    np.array([pair[name] for pair in pairs])
    for name in ("confidence", "alignment_score", "matched")
  )
  result = calibration_metrics.calibration_report(confidence, x, matched)
  given = {f"auc_{name}": values[:, 0] for name, values in outputs.items()}
  alone = calibration_metrics.truth_metrics(matched, confidence, given)
  result["metrics"] |= {name: alone[name] for name in given if name in alone}
  result["metrics"]["noise_rate_estimate"] = noise_rate
  return result


TASKS = {
  "retrieval": retrieval_task,
  "video_retrieval": video_retrieval_task,
  "recognition": recognition_task,
  "classification": classification_task,
  "zero_shot": zero_shot_task,
  "calibration": calibration_task,
}
