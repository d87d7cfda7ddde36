"""Times a step of each method of the noise study, relative to InfoNCE.

    python -m benchmarks.noise_study.cost --out=runs/noise_study \
      [--methods=infonce,cotrain] [--rounds=7] [--steps=10]

One process, random batches. The methods take turns, a few steps each, so that
what else the machine does touches all of them; a ratio is taken within a round.
Writes OUT/cost.json, which `benchmarks.noise_study --collect` reads.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.noise_study.statistics import COST_FILE, ratios
from calince_jax import cli
from calince_jax.models.cali_nce import dummy_batch
from calince_jax.runtime import compile_cache, sharding
from calince_jax.training import setup
from launch.expand import load


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string(
    "config", "configs/noise_study.py", "configuration of the study"
  )
  flags.DEFINE_string("out", "runs/noise_study", "folder of the study")
  flags.DEFINE_string("data", None, "prepared data set; default: OUT/data")
  flags.DEFINE_list("methods", [], "methods to time; default: all")
  flags.DEFINE_integer("rounds", 7, "number of turns of each method", 1)
  flags.DEFINE_integer("steps", 10, "number of steps in a turn", 1)


def main() -> None:
  """Compiles each method's step, times them in turns, writes the file."""
  compile_cache.enable()
  F = flags.FLAGS
  study, out = load(F.config), Path(F.out)
  methods = F.methods or list(study.METHODS)
  turns = {}
  for method in methods:
    start = time.perf_counter()
    config = study.get_config(method)
    config.data.datasets = F.data or str(out / "data")
    config.evaluate_every = 0  # the steps alone are timed
    turns[method] = make_turn(config.to_dict(), F.steps)
    turns[method]()  # compiles
    print(f"{method}: ready in {time.perf_counter() - start:.0f} s", flush=True)
  seconds = {method: [] for method in methods}
  for i in range(F.rounds):
    for method, turn in turns.items():
      seconds[method].append(turn() / F.steps)
    print(f"round {i + 1}/{F.rounds}", flush=True)
  out.mkdir(parents=True, exist_ok=True)
  document = {
    "cores": len(os.sched_getaffinity(0)),
    "seconds_per_step": seconds,
  }
  (out / COST_FILE).write_text(json.dumps(document, indent=1) + "\n")
  for method, ratio in ratios(seconds, methods[0]).items():
    print(
      f"{method:<24} {1e3 * statistics.median(seconds[method]):8.1f} ms a step,"
      f" {ratio['median']:.3f} of {methods[0]}'s"
    )
  print(f"wrote {out / COST_FILE}")


def make_turn(config: Mapping[str, Any], num_steps: int) -> Callable[[], float]:
  """A function that does `num_steps` steps and returns the seconds."""
  mesh, data, training = setup.open_training(config, jax.devices())
  state, step = training.start(config["seed"]), training.step
  batch = dummy_batch(training.model.config, config["batch_size"])
  video, text = jax.random.split(jax.random.key(0))
  batch["video"] = jax.random.bits(video, batch["video"].shape, jnp.uint8)
  batch["text_ids"] = jax.random.randint(
    text, batch["text_ids"].shape, 1, data["tokenizer"].vocab_size
  )
  batch = jax.device_put(batch, sharding.batch_sharding(mesh))

  def turn() -> float:
    nonlocal state
    start = time.perf_counter()
    for _ in range(num_steps):
      state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    return time.perf_counter() - start

  return turn


if __name__ == "__main__":
  define_flags()
  cli.run(main)
