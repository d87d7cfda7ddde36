"""Times the train step on synthetic arrays, ours and PyTorch's in turns.

    python -m benchmarks.step [--torch=PATH/bin/python]

Needs no TensorFlow and no data. --torch names the Python of an environment with
PyTorch, which is made apart (`pip install torch`): the same two towers take
their steps in it (benchmarks/torch_step.py), eagerly and by torch.compile, each
in a process of its own. The processes take turns, so that ratios hold on a
machine that others share. On an H100:

    python -m benchmarks.step --config.batch_size=32 --steps=30 \
      --config.data.num_frames=16 --config.data.image_size=224 \
      --config.model.video.size=B --config.model.video.tubelet=2,16 \
      --config.model.text.size=B --config.model.dtype=bfloat16 --torch=...

Without --torch any configuration can be timed. The table is written to
runs/step/PLATFORM_DTYPE.md.
"""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Another framework's process needs memory of the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
from absl import flags
from ml_collections import config_flags

from benchmarks.noise_study.text import table
from calince_jax import cli
from calince_jax.data.tokenizer import Vocabulary
from calince_jax.errors import UserError
from calince_jax.models import transformer
from calince_jax.models.cali_nce import dummy_batch
from calince_jax.runtime import chips, sharding
from calince_jax.training import flops, setup

PEER = Path(__file__).with_name("torch_step.py")


def main() -> None:
  """Compiles the steps, times them in turns, prints and writes the table."""
  F = flags.FLAGS
  config = F.config.to_dict()
  shape = peer_shape(config, F.vocab_size) if F.torch else {}
  modes = F.modes if F.torch else []
  peers = [Peer(F.torch, shape, mode == "compiled") for mode in modes]
  ours, facts = our_step(config, F.vocab_size)
  steps = {"ours": ours}
  for peer in peers:
    if peer.parameters != facts["parameters"]:
      raise UserError(
        f"the towers of PyTorch have {peer.parameters:,} parameters, ours"
        f" {facts['parameters']:,}: they are not the same"
      )
    steps[peer.name] = peer.step
  turns = {name: [] for name in steps}
  for _ in range(F.steps):
    for name, step in steps.items():
      turns[name].append(step())
  lines = report(turns, config["batch_size"], facts)
  print("\n".join(lines))
  kind = jax.devices()[0].platform
  out = Path(F.out or f"runs/step/{kind}_{config['model']['dtype']}.md")
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text("\n".join(lines) + "\n")
  print(f"wrote {out}")


def our_step(
  config: dict[str, Any], vocab_size: int
) -> tuple[Callable[[], dict[str, float]], dict[str, Any]]:
  """Compiles the train step.

  Returns:
    A function that takes one step, waits, and returns its `seconds`, the `cpu`
    seconds of all threads, and the `loss`; and facts of the step: `parameters`
    of the towers, `operations` of a step, and words for the device, the
    versions and the memory.
  """
  mesh = setup.open_mesh(config, jax.devices())
  training = setup.compile_training(
    config,
    mesh,
    vocabulary=Vocabulary(vocab_size),
    num_pairs=config["batch_size"],
  )
  state = training.start(config["seed"])
  batch = jax.device_put(
    dummy_batch(training.model.config, config["batch_size"]),
    sharding.batch_sharding(mesh),
  )
  start = time.perf_counter()
  compiled = training.step.lower(state, batch).compile()
  seconds = time.perf_counter() - start
  state, metrics = compiled(state, batch)  # warms up
  jax.block_until_ready(metrics)
  memory = compiled.memory_analysis().temp_size_in_bytes
  facts = {
    "parameters": towers(state.params),
    "operations": flops.count(training.step, state, batch),
    "devices": mesh.size,
    "device": jax.devices()[0].device_kind,
    "cores": os.cpu_count(),
    "dtype": config["model"]["dtype"],
    "versions": f"jax {jax.__version__}",
    "memory": f"compiled in {seconds:.1f} s,"
    f" temporary memory {memory / 2**20:.0f} MiB a device",
  }

  def step():
    nonlocal state
    start, cpu = time.perf_counter(), time.process_time()
    state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    return {
      "seconds": time.perf_counter() - start,
      "cpu": time.process_time() - cpu,
      "loss": float(metrics["loss"]),
    }

  return step, facts


def towers(params: dict[str, Any]) -> int:
  """Parameters of both towers, their projections and the temperature."""
  kept = {
    name: tree
    for name, tree in params.items()
    if name.startswith(("video_", "text_", "log_logit_scale"))
  }
  return sum(leaf.size for leaf in jax.tree.leaves(kept))


def peer_shape(config: dict[str, Any], vocab_size: int) -> dict[str, Any]:
  """What benchmarks/torch_step.py needs to know to take the same step.

  Raises:
    UserError: it cannot take this one.
  """
  model, objective = config["model"], config["objective"]
  data, video, text = config["data"], model["video"], model["text"]
  needed = {
    "config.objective.contrastive": (objective["contrastive"], "infonce"),
    "config.objective.correspondence_weight": (
      objective["correspondence_weight"],
      0.0,
    ),
    "config.objective.predictive_weight": (objective["predictive_weight"], 0.0),
    "config.model.dropout": (model["dropout"], 0.0),
    "config.model.remat": (model["remat"], "none"),
    "config.model.video.pooling": (video["pooling"], "map"),
    "config.model.video.pixels": (video["pixels"], "centred"),
    "config.model.text.pooling": (text["pooling"], "map"),
    "config.grad_cache_chunks": (config["grad_cache_chunks"], 1),
  }
  for key, (value, known) in needed.items():
    if value != known:
      raise UserError(f"{key}={value!r}: with --torch it must be {known!r}")

  def size(name):
    found = transformer.size(name)
    if found.hidden is not None:
      raise UserError(f"size {name}: the peer's MLPs have four widths")
    return {key: vars(found)[key] for key in ("width", "depth", "num_heads")}

  return {
    "batch": config["batch_size"],
    "dtype": model["dtype"],
    "num_frames": data["num_frames"],
    "image_size": data["image_size"],
    "text_length": data["text_length"],
    "vocab_size": vocab_size,
    "video": size(video["size"]),
    "temporal_depth": video["temporal_depth"],
    "tubelet": list(video["tubelet"]),
    "text": size(text["size"]),
    "embedding_dim": model["embedding_dim"],
    "logit_scale": model["logit_scale"],
  }


class Peer:
  """benchmarks/torch_step.py in a process, which takes a step when asked."""

  def __init__(self, python: str, shape: dict[str, Any], compiled: bool):
    self.process = subprocess.Popen(
      [python, str(PEER), json.dumps(shape | {"compile": compiled})],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    facts = self._answer()
    self.name = f"torch {facts['torch']}{', compiled' if compiled else ''}"
    self.parameters = facts["parameters"]

  def _answer(self):
    line = self.process.stdout.readline()
    if not line:
      status = self.process.wait()
      raise UserError(
        f"{' '.join(self.process.args[:2])} ended with status {status}; what"
        " it said stands above"
      )
    return json.loads(line)

  def step(self) -> dict[str, float]:
    """As the step of `our_step`."""
    self.process.stdin.write("\n")
    self.process.stdin.flush()
    return self._answer()


def report(
  turns: dict[str, list[dict[str, float]]], batch: int, facts: dict[str, Any]
) -> list[str]:
  """The lines of the table, in Markdown."""

  def of(name, key):
    return [turn[key] for turn in turns[name]]

  chip = chips.of_device(facts["device"])
  head = ["step", "median ms", "least ms", "least CPU ms", "clips/s"]
  head += ["ours takes of its time"] + ["MFU"] * (chip is not None)
  rows = []
  for name in turns:
    seconds = of(name, "seconds")
    median = statistics.median(seconds)
    ratios = [
      ours / its
      for ours, its in zip(of("ours", "seconds"), seconds, strict=True)
    ]
    row = [
      name,
      f"{1e3 * median:,.0f}",
      f"{1e3 * min(seconds):,.0f}",
      f"{1e3 * min(of(name, 'cpu')):,.0f}",
      f"{batch / median:,.1f}",
      f"{statistics.median(ratios):.2f}"
      f" ({min(ratios):.2f} to {max(ratios):.2f})",
    ]
    if chip is not None:
      peak = facts["devices"] * chip.flops
      row.append(f"{100 * facts['operations'] / median / peak:.1f} %")
    rows.append(row)
  losses = {name: of(name, "loss")[-1] for name in turns}
  return [
    f"{facts['devices']} x {facts['device']}, {facts['cores']} cores,"
    f" {facts['dtype']}, batch {batch},"
    f" {facts['parameters'] / 1e6:.1f} M parameters,"
    f" {facts['operations'] / 1e6:,.0f} M operations a step,"
    f" {facts['versions']}; {len(turns['ours'])} steps each, in turns.",
    "",
    table(head, rows),
    "",
    f"Ours: {facts['memory']}. Loss at the end: "
    + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    + ".",
  ]


if __name__ == "__main__":
  config_flags.DEFINE_config_file("config", "configs/step_time.py")
  flags.DEFINE_integer("steps", 10, "number of timed steps", 1)
  flags.DEFINE_integer("vocab_size", 8000, "of the text tower", 5)
  flags.DEFINE_string("torch", None, "Python of an environment with PyTorch")
  flags.DEFINE_multi_enum(
    "modes", ["eager", "compiled"], ["eager", "compiled"], "of PyTorch"
  )
  flags.DEFINE_string("out", None, "the table to write; default: runs/step/*")
  cli.run(main)
