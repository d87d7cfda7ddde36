"""Times the train step on synthetic arrays; needs no TensorFlow and no data.

    python -m benchmarks.train_step --config=configs/cali_nce.py \
      [--config.batch_size=32] [--steps=10]

Prints the time to compile, the median time of a step, examples per second and
what XLA says of the memory.
"""

import statistics
import time

import jax
from absl import flags
from ml_collections import config_flags

from calince_jax import cli
from calince_jax.data.tokenizer import Vocabulary
from calince_jax.models.cali_nce import dummy_batch
from calince_jax.runtime import sharding
from calince_jax.training import setup

CONFIG = config_flags.DEFINE_config_file("config", "configs/cali_nce.py")
STEPS = flags.DEFINE_integer("steps", 10, "number of timed steps", 1)
VOCABULARY = flags.DEFINE_integer("vocab_size", 8000, "of the text tower", 1)


def main() -> None:
  """Compiles the step, times it and prints the result."""
  config = CONFIG.value.to_dict()
  mesh = setup.open_mesh(config, jax.devices())
  training = setup.compile_training(
    config,
    mesh,
    vocabulary=Vocabulary(VOCABULARY.value),
    num_pairs=config["batch_size"],
  )
  state = training.start(config["seed"])
  batch = jax.device_put(
    dummy_batch(training.model.config, config["batch_size"]),
    sharding.batch_sharding(mesh),
  )
  start = time.perf_counter()
  compiled = training.step.lower(state, batch).compile()
  print(f"compiled in {time.perf_counter() - start:.1f} s")
  seconds = []
  for _ in range(STEPS.value + 1):
    start = time.perf_counter()
    state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    seconds.append(time.perf_counter() - start)
  median = statistics.median(seconds[1:])
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  memory = compiled.memory_analysis()
  print(
    f"{mesh.size} x {jax.devices()[0].device_kind},"
    f" {parameters / 1e6:.1f} M parameters, batch {config['batch_size']}:"
    f" {1e3 * median:.1f} ms a step, {config['batch_size'] / median:.0f}"
    f" examples/s, loss {float(metrics['loss']):.3f}, temporary memory"
    f" {memory.temp_size_in_bytes / 2**20:.0f} MiB a device"
  )


if __name__ == "__main__":
  cli.run(main)
