"""Compiles a configuration's train step for a pod, on a machine with a CPU.

    python -m calince_jax.plan --config=configs/cali_nce.py \
      --topology=v5e:16x16 [--num_slices=2] [--config.key=value ...]

Prints whether it fits, the memory by kind, what is communicated, and the time
of a step by each limit of the chips. Nothing is run: times are lower bounds.
Topologies of TPUs need libtpu (pip install "jax[tpu]"); cpu:N needs nothing.
gpu:8xH100 is an estimate, and says so: it reads the program for cpu:8.
"""

import dataclasses
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no accelerator is opened

from absl import flags
from ml_collections import ConfigDict, config_flags

from calince_jax import cli
from calince_jax import config as config_lib
from calince_jax.errors import UserError
from calince_jax.runtime import platform_flags, topologies
from calince_jax.training import ahead_of_time
from calince_jax.training.ahead_of_time import Plan

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; `define_flags` says what each option is."""

  config: ConfigDict
  topology: str
  num_slices: int = 1
  vocab_size: int = 32_000
  num_pairs: int = 10_000_000
  max_batch: bool = False


def define_flags() -> None:
  """Defines the command line."""
  config_flags.DEFINE_config_file("config", None, "A file of configs/.")
  flags.DEFINE_string(
    "topology", None, f"The devices: {topologies.describe()}."
  )
  flags.DEFINE_integer(
    "num_slices", Options.num_slices, "TPU slices of this topology.", 1
  )
  flags.DEFINE_integer(
    "vocab_size", Options.vocab_size, "Tokens of the vocabulary.", 5
  )
  flags.DEFINE_integer(
    "num_pairs", Options.num_pairs, "Pairs of the training data.", 1
  )
  flags.DEFINE_bool(
    "max_batch",
    Options.max_batch,
    "Doubles the batch until it does not fit, and plans the largest that does.",
  )
  flags.mark_flags_as_required(["config", "topology"])


def plan(options: Options) -> Plan:
  """Compiles, prints and returns the plan.

  Raises:
    UserError: the topology is unknown, or values do not fit each other.
  """
  config = options.config.to_dict()
  config_lib.check(config)
  devices = topologies.devices(options.topology, options.num_slices)
  made = _plan(options, config, devices)
  while options.max_batch and made.fits:
    larger = config | {"batch_size": 2 * config["batch_size"]}
    print(f"batch {config['batch_size']} fits", flush=True)
    after = _plan(options, larger, devices)
    if not after.fits:
      break
    made, config = after, larger
  print("\n".join(describe(made, options.topology)), flush=True)
  return made


def _plan(options, config, devices):
  return ahead_of_time.plan_step(
    config,
    devices,
    vocab_size=options.vocab_size,
    num_pairs=options.num_pairs,
  )


def describe(made: Plan, topology: str) -> list[str]:
  """The lines that `plan` prints."""
  chip = topologies.chip_of(topology)
  limit = f" of {chip.memory / GIB:.0f}" if chip else ""
  fits = made.fits and (chip is None or made.memory <= chip.memory)
  lines = [
    f"{made.parameters / 1e6:.1f} M parameters on {made.devices} devices of"
    f" {topology}, {made.slices} slice(s), batch {made.batch_size}"
    f" ({made.batch_size / made.devices:g} on each)",
    f"{'fits' if fits else 'DOES NOT FIT'}: {made.memory / GIB:.2f} GiB"
    f"{limit} on each device",
  ]
  kinds = made.state | {
    "input": made.input,
    "activations, gradients, loss": made.temporaries,
  }
  lines += [f"  {name:30}{size / GIB:9.3f} GiB" for name, size in kinds.items()]
  whole = sum(size for _, size in made.replicated)
  lines.append(
    f"replicated: {len(made.replicated)} larger parameters,"
    f" {whole / 2**20:.1f} MiB"
    + "".join(f"\n  {path} {n / 2**20:.1f} MiB" for path, n in made.replicated)
  )
  clip = made.batch_size
  lines.append(
    f"operations: {made.model_flops / clip / 1e12:.3f} TFLOP a clip,"
    f" {made.flops / clip / 1e12:.3f} with recomputation"
  )
  if not made.fits:
    return [*lines, *advice(made)]
  sent = ", ".join(f"{n / 1e9:.3f} GB {kind}" for kind, n in made.sent.items())
  lines.append(f"sent by each device in a step: {sent or 'nothing'}")
  if made.slices > 1:
    between = made.sent_between_slices / 1e9
    lines.append(f"  of it between slices: {between:.3f} GB")
  per_clip = made.memory_traffic / (made.batch_size / made.devices)
  lines.append(
    f"memory traffic: {made.memory_traffic / 1e9:.1f} GB a step and device,"
    f" {per_clip / 1e9:.2f} GB a clip (upper estimate)"
  )
  if topologies.is_estimate(topology):
    lines.append(
      "an estimate: memory, traffic and collectives are those of the program"
      " for as many simulated CPU devices, which holds in float32 what a GPU"
      " holds in bfloat16, and fuses less"
    )
  if chip:
    times = ahead_of_time.seconds(made, chip)
    slowest = max(times, key=times.get)
    mfu = made.model_flops / made.devices / chip.flops / times[slowest]
    lines.append(
      "a step takes at least "
      + ", ".join(f"{1e3 * t:.1f} ms by {name}" for name, t in times.items())
      + f": at most {made.batch_size / times[slowest]:.0f} clips/s,"
      f" MFU at most {mfu:.0%}"
    )
  return [*lines, *advice(made)]


def advice(made: Plan) -> list[str]:
  """What to change, in words."""
  lines = []
  if not made.fits:
    lines.append(
      "advice: config.model.remat='full' keeps fewer activations,"
      " config.grad_cache_chunks encodes fewer clips at a time, and with more"
      " devices or a smaller batch each has fewer clips"
    )
  if made.replicated and made.devices > made.slices:
    lines.append(
      "advice: no axis of the replicated matrices is divided by the"
      f" {made.devices // made.slices} devices of a slice; with"
      f" config.sharding.slices={2 * made.slices} each group has half as many"
    )
  return lines


def main(options: Options) -> None:
  """Ends with status 2 where the step does not fit."""
  platform_flags.apply()  # those of train
  made = plan(options)
  chip = topologies.chip_of(options.topology)
  if not made.fits or (chip and made.memory > chip.memory):
    raise UserError("the step does not fit the memory of these devices")


if __name__ == "__main__":
  define_flags()
  cli.run(lambda: main(cli.options(Options)))
