"""Exports a run's model to a folder of its own, and checks it.

    python -m calince_jax.export --workdir=DIR --out=MODEL

MODEL holds model.safetensors and params/ (Orbax), the same parameters;
config.json (model, preprocessing, calibration); tokenizer.model; README.md, a
model card. `calince_jax.load(MODEL)` uses it.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from etils import epath
from safetensors.numpy import save_file

from calince_jax import cli
from calince_jax import config as config_lib
from calince_jax.errors import UserError
from calince_jax.inference import model as inference
from calince_jax.inference.from_run import PARAMS, open_run
from calince_jax.inference.model import VideoTextModel
from calince_jax.runtime import compile_cache


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; `define_flags` says what each is."""

  workdir: str
  out: str
  step: int | None = None
  params: str = PARAMS[0]


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("workdir", None, "of the run")
  flags.DEFINE_string("out", None, "the folder to write")
  flags.DEFINE_integer("step", None, "of the checkpoint; default: the latest")
  flags.DEFINE_enum("params", Options.params, PARAMS, "which parameters")
  flags.mark_flags_as_required(["workdir", "out"])


def export(options: Options) -> Path:
  """Writes to a folder beside `out`, checks it, and renames it."""
  compile_cache.enable()
  out = Path(options.out).resolve()
  if out.exists():
    raise UserError(f"{out} exists already; choose another --out or delete it")
  model, step, config = open_run(
    options.workdir, step=options.step, params=options.params
  )
  partial = out.with_name(out.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  write_model(partial, model, config)
  workdir = epath.Path(options.workdir)
  tokenizer = (workdir / inference.TOKENIZER).read_bytes()
  (partial / inference.TOKENIZER).write_bytes(tokenizer)
  card = model_card(out.name, model, step, config, read_results(workdir))
  (partial / "README.md").write_text(card)
  check_equal(model, inference.load(partial))
  partial.rename(out)
  print(f"exported step {step} to {out}", flush=True)
  return out


def write_model(
  folder: Path, model: VideoTextModel, config: dict[str, Any]
) -> None:
  """Parameters, twice, and config.json."""
  save_file(
    inference.flatten(model.params),
    folder / inference.WEIGHTS,
    metadata={"format": "flax"},
  )
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / "params", model.params)
  document = {
    "format_version": inference.FORMAT_VERSION,
    "model": dataclasses.asdict(model.config),
    "preprocessing": dataclasses.asdict(config_lib.sampling(config)),
    "calibration": model.calibration,
  }
  text = json.dumps(document, indent=2) + "\n"
  (folder / inference.CONFIG).write_text(text)


def check_equal(model: VideoTextModel, loaded: VideoTextModel) -> None:
  """What was written gives the same embeddings to the last bit."""
  c = model.config
  rng = np.random.default_rng(0)
  shape = (2, c.num_frames, c.image_size, c.image_size, 3)
  video = rng.integers(0, 256, shape, np.uint8)
  texts = ["one", "another"]
  for name, ours, theirs in (
    ("encode_video", model.encode_video(video), loaded.encode_video(video)),
    ("encode_text", model.encode_text(texts), loaded.encode_text(texts)),
  ):
    if not np.array_equal(ours, theirs):
      raise RuntimeError(f"the exported model's {name} differs from the run's")


def read_results(workdir: epath.Path) -> dict[str, dict[str, Any]]:
  """What evaluate has written so far, by task."""
  return {
    path.stem: json.loads(path.read_text())
    for path in sorted((workdir / "eval").glob("*.json"))
  }


def model_card(
  name: str,
  model: VideoTextModel,
  step: int,
  config: dict[str, Any],
  results: dict[str, dict[str, Any]],
) -> str:
  """The README of an exported model."""
  c = model.config
  parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  lines = [
    f"# {name}",
    "",
    "A video-text model trained with calince_jax: two encoders into one space,"
    " and a score that tells whether a text belongs to a clip.",
    "",
    f"* {parameters / 1e6:.2f} M parameters: video"
    f" {c.video.name}-{c.video.size}, text {c.text.name}-{c.text.size},"
    f" embedding {c.embedding_dim}",
    f"* input: {c.num_frames} frames of {c.image_size} x {c.image_size}, uint8"
    f" RGB; texts of up to {c.text_length} tokens",
    f"* trained for {step} of {config['total_steps']} steps of"
    f" {config['batch_size']} pairs on"
    f" {', '.join(Path(f).name for f in config_lib.data_mix(config)[0])}",
    f"* objective: confidence `{config['objective']['confidence']}`, weights"
    f" {config['objective']['correspondence_weight']} (correspondence),"
    f" {config['objective']['contrastive_weight']} (contrastive),"
    f" {config['objective']['predictive_weight']} (predictive)",
    "",
    "```python",
    "import calince_jax",
    f'model = calince_jax.load("{name}")',
    f"video = model.encode_video(clips)  # uint8 [B, T, H, W, 3] ->"
    f" [B, {c.embedding_dim}]",
    'text = model.encode_text(["a caption"])',
    "similarity = video @ text.T",
    "```",
    "",
  ]
  for task, result in results.items():
    lines += [f"## {task}", "", "| metric | value | chance |", "|---|---|---|"]
    chance = result["chance"]
    for metric, value in result["metrics"].items():
      beside = f"{chance[metric]:.3f}" if metric in chance else ""
      lines.append(f"| {metric} | {value:.3f} | {beside} |")
    protocol = ", ".join(f"{k}: {v}" for k, v in result["protocol"].items())
    lines += ["", f"Protocol: {protocol}.", ""]
  lines += [
    "## Limits",
    "",
    "The model knows the world of its training clips alone. The confidence is a"
    " probability only for pairs drawn as the training pairs were.",
    "",
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  define_flags()
  cli.run(lambda: export(cli.options(Options)))
