"""Does calibration drive a run to chance? Many short runs over drawn corpora.

    python -m benchmarks.noise_study.collapse --out=runs/collapse \
      [--count=100] [--steps=150] [--batch_size=64]

Each draw is a corpus of our generator (style, number of clips and of things),
a share and a kind of wrong captions, and a seed, all from its number. On it
METHODS are trained in turn, in this process, on pictures that were never
encoded. Each method is compiled once. One line a draw goes to OUT/runs.jsonl;
started again, the command goes on behind the last one. At the end it writes

    OUT/collapse.md     how many runs are stuck, of which method, on what

A run is stuck if the in-batch accuracy of its last 10 steps is below LEARNS
times chance.
"""

import collections
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks.noise_study.runs import LEARNS
from benchmarks.noise_study.text import table
from calince_jax import cli
from calince_jax.data.input import mismatch_kinds
from calince_jax.data.synthetic import caption, scene, video
from calince_jax.data.tokenizer import BOS, EOS, Vocabulary
from calince_jax.files import read_lines
from calince_jax.runtime import compile_cache
from calince_jax.training import setup
from launch.expand import load

METHODS = ("cotrain", "cali_nce")
VOCABULARY = 256
LAST = 10  # steps
KINDS = ("uniform", "near", "partial")  # those that need no groups


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string(
    "config", "configs/noise_study.py", "configuration of the study"
  )
  flags.DEFINE_string("out", "runs/collapse", "folder to write")
  flags.DEFINE_integer("count", 100, "draws", 1)
  flags.DEFINE_integer("steps", 150, "of each run", LAST)
  flags.DEFINE_integer("batch_size", 64, "pairs", 2)


def main() -> None:
  """Trains the runs that are missing and writes the table."""
  F = flags.FLAGS
  out = Path(F.out)
  out.mkdir(parents=True, exist_ok=True)
  path = out / "runs.jsonl"
  rows = [json.loads(row) for row in read_lines(path)] if path.exists() else []
  compile_cache.enable()
  study, trainings = load(F.config), {}
  for number in range(len(rows), F.count):
    drawn = draw(number, F.batch_size)
    row = drawn | {"chance": 1 / F.batch_size}
    corpus = make_corpus(drawn, study.get_config().data)
    for method in METHODS:
      if method not in trainings:
        trainings[method] = compile_method(study, method, F.steps, F.batch_size)
      row[method] = train(*trainings[method], corpus, drawn["seed"], F.steps)
    rows.append(row)
    with path.open("a") as file:
      file.write(json.dumps(row) + "\n")
    accuracies = ", ".join(f"{m} {row[m]['accuracy']:.2f}" for m in METHODS)
    print(f"{number + 1}/{F.count} {drawn}: {accuracies}", flush=True)
  (out / "collapse.md").write_text(describe(rows, F.steps) + "\n")
  print(describe(rows, F.steps))


def draw(number: int, batch_size: int) -> dict[str, Any]:
  """The settings of draw `number`: a corpus of at least two batches, noise."""
  rng = np.random.default_rng(number)
  return {
    "style": str(rng.choice(scene.STYLES)),
    "max_objects": int(rng.integers(1, 4)),
    "clips": int(batch_size * 2 ** rng.uniform(1, 4)),
    "noise_rate": round(float(rng.uniform(0, 0.7)), 2),
    "kind": str(rng.choice(KINDS)),
    "seed": number,
  }


def make_corpus(
  drawn: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """The pairs of a draw; what it looks at of `config.data` are three sizes.

  Returns:
    video uint8 [N, num_frames, image_size, image_size, 3], text_ids int32
    [N, text_length], matched int8 [N].
  """
  names = ("max_objects", "style")
  scenes = [
    scene.sample_scene(
      drawn["seed"], "train", i, **{name: drawn[name] for name in names}
    )
    for i in range(drawn["clips"])
  ]
  texts = [[caption.caption(one)] for one in scenes]
  ids = [str(i) for i in range(len(texts))]
  clips = mismatch_kinds.Clips(ids, texts, [""] * len(texts))
  matched = np.ones(len(texts), np.int8)
  count = round(drawn["noise_rate"] * len(texts))
  if count > 1:
    wrong = mismatch_kinds.draw(drawn["kind"], clips, count, drawn["seed"])
    for i, one in wrong.items():
      texts[i], matched[i] = one.texts, 0
  sizes = {"size": data["image_size"], "num_frames": data["num_frames"]}
  return {
    "video": np.stack([video.render(one, **sizes) for one in scenes]),
    "text_ids": word_ids([text for (text,) in texts], data["text_length"]),
    "matched": matched,
  }


def word_ids(texts: list[str], length: int) -> np.ndarray:
  """int32 [N, length]: begin, a number for each word, end; longer are cut."""
  words = sorted({word for text in texts for word in text.split()})
  first = EOS + 2  # behind the mask
  number = {w: first + i % (VOCABULARY - first) for i, w in enumerate(words)}
  ids = np.zeros((len(texts), length), np.int32)
  for row, text in zip(ids, texts, strict=True):
    known = [number[word] for word in text.split()][: length - 2]
    row[: len(known) + 2] = [BOS, *known, EOS]
  return ids


def compile_method(study, method: str, steps: int, batch_size: int):
  """The Training of a method."""
  config = study.get_config(method)
  config.batch_size, config.total_steps = batch_size, steps
  config = config.to_dict()
  training = setup.compile_training(
    config,
    setup.open_mesh(config, jax.devices()[:1]),
    vocabulary=Vocabulary(size=VOCABULARY),
    num_pairs=1,
  )
  return training, batch_size


def train(
  training: setup.Training,
  batch_size: int,
  corpus: Mapping[str, np.ndarray],
  seed: int,
  steps: int,
) -> dict[str, Any]:
  """One run.

  Returns:
    `accuracy` in the batch, of the last steps; `took_off`, the step by which it
    was LEARNS times chance over LAST steps, or None; `least_share`, the
    smallest effective share of a batch.
  """
  state, accuracies, shares = training.start(seed), [], []
  count = len(corpus["matched"])
  rng = np.random.default_rng(seed)
  epochs = 1 + steps * batch_size // count
  order = np.concatenate([rng.permutation(count) for _ in range(epochs)])
  for step in range(steps):
    chosen = order[step * batch_size : (step + 1) * batch_size]
    batch = {name: values[chosen] for name, values in corpus.items()}
    batch |= {
      "text_mask": batch["text_ids"] != 0,
      "pair_index": chosen.astype(np.int32),
      "preempted": np.zeros(batch_size, bool),
    }
    state, metrics = training.step(state, batch)
    accuracies.append(float(metrics["in_batch_accuracy"]))
    shares.append(float(metrics["effective_sample_size"]) / batch_size)
  window = np.convolve(accuracies, np.full(LAST, 1 / LAST), "valid")
  learned = np.flatnonzero(window >= LEARNS / batch_size)
  return {
    "accuracy": float(window[-1]),
    "took_off": int(learned[0]) + LAST if len(learned) else None,
    "least_share": min(shares),
  }


def describe(rows: list[dict[str, Any]], steps: int) -> str:
  """The counts in Markdown."""
  stuck = collections.Counter()
  for row in rows:
    least = LEARNS * row["chance"]
    is_stuck = tuple(row[m]["accuracy"] < least for m in METHODS)
    stuck[is_stuck] += 1
  cells = []
  for m, method in enumerate(METHODS):
    off = [r[method]["took_off"] for r in rows if r[method]["took_off"]]
    cells.append(
      [
        f"`{method}`",
        f"{sum(n for key, n in stuck.items() if key[m])} of {len(rows)}",
        f"{statistics.median(off):.0f}" if off else "",
        f"{statistics.mean(r[method]['accuracy'] for r in rows):.3f}",
        f"{min(r[method]['least_share'] for r in rows):.2f}",
      ]
    )
  head = ["", "stuck", "take-off, median step", "accuracy", "least share"]
  chance = statistics.mean(row["chance"] for row in rows)
  return (
    f"{len(rows)} draws of {steps} steps, each with both methods; chance of the"
    f" in-batch accuracy {chance:.3f}. Stuck where co-training is not:"
    f" **{stuck[False, True]}**; the other way round: {stuck[True, False]}.\n\n"
    + table(head, cells)
  )


if __name__ == "__main__":
  define_flags()
  cli.run(main)
