"""Evaluates a run on a prepared data set; results go to WORKDIR/eval/.

    python -m calince_jax.evaluate --workdir=DIR --task=retrieval \
      [--data=DATA] [--split=test]

Tasks, several separated by commas:
  retrieval        zero-shot, text to video and video to text
  video_retrieval  by class: queries of --split, gallery of --train_split
  recognition      a linear probe on frozen features of --train_split
  calibration      how well the score tells mismatched pairs of --train_split
"""

import base64
import csv
import io
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import flags
from PIL import Image

from calince_jax import build, compile_cache, errors
from calince_jax.errors import UserError, check_choice
from calince_jax.evals import calibration, recognition, retrieval
from calince_jax.inference import VideoTextModel, posterior
from calince_jax.run_model import PARAMS, open_run

WORKDIR = flags.DEFINE_string("workdir", None, "of the run")
TASK = flags.DEFINE_string("task", "retrieval", "see above")
DATA = flags.DEFINE_string("data", None, "prepared folder; default: the run's")
SPLIT = flags.DEFINE_string("split", "test", "what is evaluated")
TRAIN_SPLIT = flags.DEFINE_string("train_split", "train", "gallery and probe")
STEP = flags.DEFINE_integer("step", None, "of the checkpoint; default: latest")
WEIGHTS = flags.DEFINE_enum("params", PARAMS[0], PARAMS, "which parameters")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "clips encoded at a time")
NUM_CLIPS = flags.DEFINE_integer("num_clips", 1, "test views along time")
NUM_CROPS = flags.DEFINE_integer("num_crops", 1, "test views across the frame")
CENTER = flags.DEFINE_bool("center", True, "mean-centre in video_retrieval")
SEED = flags.DEFINE_integer("seed", 0, "of the probe and the gallery shown")
GALLERY = flags.DEFINE_integer("gallery", 8, "text queries shown in the report")
WORST = flags.DEFINE_integer("worst", 48, "low-scored pairs in the report")


def main(argv: list[str]) -> None:
  """One task after the other; each writes its file and prints its table."""
  del argv
  if not WORKDIR.value:
    raise UserError("give --workdir=DIR, the folder of a run")
  tasks = TASK.value.split(",")
  for task in tasks:
    check_choice("--task", task, list(TASKS))
  compile_cache.enable()
  model, step, config = open_run(
    WORKDIR.value, step=STEP.value, params=WEIGHTS.value
  )
  from calince_jax.data.clip_dataset import ClipReader

  data = DATA.value or build.data_mix(config)[0][0]
  protocol = {
    "data": Path(data).name,
    "split": SPLIT.value,
    "checkpoint_step": step,
    "params": WEIGHTS.value,
    "frames": model.config.num_frames,
    "resolution": model.config.image_size,
    "views": f"{NUM_CLIPS.value} clips x {NUM_CROPS.value} crops",
    "dtype": model.config.dtype,
    "seed": SEED.value,
  }
  folder = Path(WORKDIR.value) / "eval"
  folder.mkdir(exist_ok=True)
  features: dict[str, Any] = {}  # of a split, shared by the tasks

  def encode(split):
    if split not in features:
      reader = ClipReader(data, split)
      features[split] = encode_split(model, reader, build.sampling(config))
    return features[split]

  for task in tasks:
    result = TASKS[task](model, config, data, encode, dict(protocol))
    path = folder / f"{task}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print_table(task, result)
    print(f"wrote {path}", flush=True)


def encode_split(
  model: VideoTextModel, reader: Any, sampling: Any
) -> dict[str, Any]:
  """All clips of a split: embedding, feature (means over views), captions."""
  from calince_jax.data import pipeline

  sums: dict[str, np.ndarray] = {}
  batches = pipeline.eval_batches(
    reader,
    sampling,
    batch_size=BATCH_SIZE.value,
    num_clips=NUM_CLIPS.value,
    num_crops=NUM_CROPS.value,
  )
  for batch in batches:
    outputs = model.video_outputs(batch["video"])
    real = batch["record"] >= 0
    for name in ("embedding", "feature"):
      value = np.asarray(outputs[name], np.float32)
      if name not in sums:
        sums[name] = np.zeros((len(reader), value.shape[1]), np.float32)
      np.add.at(sums[name], batch["record"][real], value[real])
  views = NUM_CLIPS.value * NUM_CROPS.value
  embedding = sums["embedding"]
  norm = np.linalg.norm(embedding, axis=1, keepdims=True)
  return {
    "reader": reader,
    "embedding": embedding / np.maximum(norm, 1e-6),
    "feature": sums["feature"] / views,
    "clips": [captions_of(reader, i) for i in range(len(reader))],
  }


def captions_of(reader: Any, index: int) -> dict[str, Any]:
  """A record without its frames."""
  record = reader.read([index])[0]
  return {name: value for name, value in record.items() if name != "frames"}


def encode_texts(model: VideoTextModel, texts: list[str]) -> np.ndarray:
  """float32 [Q, D], a batch at a time."""
  B = BATCH_SIZE.value
  parts = []
  for start in range(0, len(texts), B):
    part = texts[start : start + B]
    filled = part + part[-1:] * (B - len(part))  # one shape, one compilation
    parts.append(model.encode_text(filled)[: len(part)])
  return np.concatenate(parts)


def retrieval_task(model, config, data, encode, protocol):
  """Zero-shot retrieval in both directions, and what the report shows."""
  split = encode(SPLIT.value)
  texts = [text for clip in split["clips"] for text in clip["texts"]]
  video_of_text = np.repeat(
    np.arange(len(split["clips"])),
    [len(clip["texts"]) for clip in split["clips"]],
  )
  text_embedding = encode_texts(model, texts)
  arrays = (text_embedding, split["embedding"], video_of_text)
  scale = float(model.logit_scale)
  return {
    "protocol": protocol
    | {
      "task": "zero-shot text-video retrieval",
      "clips": len(split["clips"]),
      "queries": len(texts),
      "tie_rule": retrieval.TIE_RULE,
      "dual_softmax_temperature": 1 / scale,
    },
    "metrics": retrieval.text_video_metrics(*arrays),
    "chance": retrieval.text_video_chance(video_of_text, len(split["clips"])),
    "dual_softmax": retrieval.text_video_metrics(
      *arrays, dual_softmax_temperature=1 / scale
    ),
    "gallery": gallery(split, texts, *arrays),
  }


def gallery(split, texts, text_embedding, video_embedding, video_of_text):
  """A few queries, drawn at random, and the clips that they find."""
  rng = np.random.default_rng(SEED.value)
  count = min(GALLERY.value, len(texts))
  shown = []
  for q in sorted(rng.choice(len(texts), count, replace=False)):
    scores = video_embedding @ text_embedding[q]
    right = scores[video_of_text[q]]
    hits = [
      {
        "id": split["clips"][v]["id"],
        "text": split["clips"][v]["texts"][0],
        "score": float(scores[v]),
        "right": bool(v == video_of_text[q]),
        "thumbnail": thumbnail(split["reader"], v),
      }
      for v in np.argsort(-scores, kind="stable")[:5]
    ]
    rank = 1 + float((scores > right).sum() + ((scores == right).sum() - 1) / 2)
    shown.append({"query": texts[q], "rank": rank, "hits": hits})
  return shown


def labelled(encode, split):
  """Features and labels of the clips of a split that have one."""
  encoded = encode(split)
  labels = [clip["label"] for clip in encoded["clips"]]
  has_label = [i for i, label in enumerate(labels) if label]
  if not has_label:
    raise UserError(
      f"no clip of split {split!r} has a label; give the manifest a column"
      " 'label' and prepare it anew"
    )
  return encoded["feature"][has_label], [labels[i] for i in has_label]


def video_retrieval_task(model, config, data, encode, protocol):
  """R@k = any of the k nearest training clips has the query's class."""
  queries, query_labels = labelled(encode, SPLIT.value)
  others, other_labels = labelled(encode, TRAIN_SPLIT.value)
  result = retrieval.class_retrieval_metrics(
    queries, query_labels, others, other_labels, center=CENTER.value
  )
  return result | {
    "protocol": protocol
    | {
      "task": "video retrieval by class, features before the projection",
      "queries": len(queries),
      "gallery": f"{len(others)} clips of {TRAIN_SPLIT.value}",
      "classes": len(set(other_labels)),
      "mean_centred": CENTER.value,
    },
  }


def recognition_task(model, config, data, encode, protocol):
  """Top-1 of a linear classifier on frozen features."""
  train, train_labels = labelled(encode, TRAIN_SPLIT.value)
  test, test_labels = labelled(encode, SPLIT.value)
  result = recognition.linear_probe(
    train, train_labels, test, test_labels, seed=SEED.value
  )
  return result | {
    "protocol": protocol
    | result.get("protocol", {})
    | {
      "task": "linear probe on frozen features before the projection",
      "train_clips": len(train),
      "test_clips": len(test),
      "classes": len(set(train_labels)),
    },
  }


def calibration_task(model, config, data, encode, protocol):
  """The head's score of every training pair against the truth, if known."""
  from calince_jax.data.clip_dataset import ClipReader

  reader = ClipReader(data, TRAIN_SPLIT.value)
  pairs = score_pairs(model, reader, build.sampling(config))
  matched = np.array([pair["matched"] for pair in pairs], np.int8)
  confidence = np.array([pair["confidence"] for pair in pairs], np.float32)
  score = np.array([pair["logit"] for pair in pairs], np.float32)
  cosine = np.array([pair["cosine"] for pair in pairs], np.float32)
  result = calibration.calibration_report(confidence, score, matched)
  by_cosine = calibration.calibration_report(confidence, cosine, matched)
  if "auc" in by_cosine["metrics"]:
    result["metrics"]["auc_cosine"] = by_cosine["metrics"]["auc"]
  result["metrics"]["noise_rate_estimate"] = model.calibration["noise_rate"]
  order = np.argsort(score, kind="stable")
  write_pairs([pairs[i] for i in order])
  worst = [
    {
      "id": pairs[i]["id"],
      "text": pairs[i]["text"],
      "confidence": float(confidence[i]),
      "matched": None if matched[i] < 0 else int(matched[i]),
      "thumbnail": thumbnail(reader, pairs[i]["record"]),
    }
    for i in order[: WORST.value]
  ]
  return result | {
    "protocol": protocol
    | {
      "task": "correspondence score of the given pairs",
      "split": TRAIN_SPLIT.value,
      "pairs": len(pairs),
    },
    "worst": worst,
  }


def score_pairs(
  model: VideoTextModel, reader: Any, sampling: Any
) -> list[dict[str, Any]]:
  """Each caption of each clip with its logit, confidence and cosine."""
  from calince_jax.data import pipeline

  pairs = []
  batches = pipeline.eval_batches(reader, sampling, batch_size=BATCH_SIZE.value)
  for batch in batches:
    video = model.video_outputs(batch["video"])
    real = batch["record"][batch["record"] >= 0]
    clips = [captions_of(reader, i) for i in real]
    for turn in range(max(len(clip["texts"]) for clip in clips)):
      pairs += score_turn(model, video, clips, real, turn)
  return pairs


def score_turn(model, video, clips, records, turn):
  """The pairs of the clips' captions number `turn`, where there are so many."""
  texts = [clip["texts"][min(turn, len(clip["texts"]) - 1)] for clip in clips]
  B = video["embedding"].shape[0]
  text = model.text_outputs(
    *model.tokenize(texts + texts[-1:] * (B - len(texts)))
  )
  cosine = np.asarray((video["embedding"] * text["embedding"]).sum(axis=-1))
  logits = np.asarray(model.pair_logits(video, text))
  confidence = posterior(logits, model.calibration)
  return [
    {
      "pair_index": clip["pair_indices"][turn],
      "id": clip["id"],
      "text": clip["texts"][turn],
      "matched": clip["matched"][turn],
      "confidence": float(confidence[i]),
      "logit": float(logits[i]),
      "cosine": float(cosine[i]),
      "record": int(records[i]),
    }
    for i, clip in enumerate(clips)
    if turn < len(clip["texts"])
  ]


def write_pairs(pairs: list[dict[str, Any]]) -> None:
  """WORKDIR/eval/pairs.csv: every pair, the least trusted first."""
  path = Path(WORKDIR.value) / "eval" / "pairs.csv"
  columns = ["pair_index", "id", "text", "confidence", "logit", "cosine"]
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(pairs)
  print(f"wrote {path}", flush=True)


def thumbnail(reader: Any, index: int, height: int = 96) -> str:
  """Three frames of a clip side by side, as a base64 JPEG file."""
  frames = reader.read([index])[0]["frames"]
  n = len(frames)
  pictures = [
    Image.open(io.BytesIO(frames[i])).convert("RGB")
    for i in (n // 6, n // 2, n - 1 - n // 6)
  ]
  width = round(pictures[0].width * height / pictures[0].height)
  strip = Image.new("RGB", (3 * width, height))
  for place, picture in enumerate(pictures):
    strip.paste(picture.resize((width, height)), (place * width, 0))
  buffer = io.BytesIO()
  strip.save(buffer, "JPEG", quality=85)
  return base64.b64encode(buffer.getvalue()).decode()


def print_table(task: str, result: dict[str, Any]) -> None:
  """The metrics of a task, chance beside each."""
  columns = [
    name
    for name in ("metrics", "chance", "majority", "dual_softmax")
    if name in result
  ]
  print(f"\n{task}  ({result['protocol']['split']})")
  print(f"  {'':26}" + "".join(f"{name:>14}" for name in columns))
  for metric, value in result["metrics"].items():
    cells = [result[name].get(metric) for name in columns]
    if isinstance(value, (int, float)):
      print(f"  {metric:26}" + "".join(_cell(cell) for cell in cells))


def _cell(value):
  return f"{value:>14.3f}" if isinstance(value, (int, float)) else f"{'':>14}"


TASKS = {
  "retrieval": retrieval_task,
  "video_retrieval": video_retrieval_task,
  "recognition": recognition_task,
  "calibration": calibration_task,
}

if __name__ == "__main__":
  errors.run(main)
