"""Exports a run's model to a folder of its own, and checks it.

    python -m calince_jax.export --workdir=DIR --out=MODEL

MODEL holds model.safetensors and params/ (Orbax), the same parameters;
config.json (model, preprocessing, calibration); tokenizer.model; README.md, a
model card. `calince_jax.load(MODEL)` uses it.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from safetensors.numpy import save_file

from calince_jax import build, compile_cache, errors, inference
from calince_jax.errors import UserError
from calince_jax.inference import VideoTextModel
from calince_jax.run_model import PARAMS, open_run

WORKDIR = flags.DEFINE_string("workdir", None, "of the run")
OUT = flags.DEFINE_string("out", None, "the folder to write")
STEP = flags.DEFINE_integer("step", None, "of the checkpoint; default: latest")
WEIGHTS = flags.DEFINE_enum("params", PARAMS[0], PARAMS, "which parameters")


def main(argv: list[str]) -> None:
  """Writes to a folder beside --out, checks it, and renames it."""
  del argv
  if not WORKDIR.value or not OUT.value:
    raise UserError(
      "give --workdir=DIR, the run, and --out=MODEL, a new folder"
    )
  compile_cache.enable()
  out = Path(OUT.value).resolve()
  if out.exists():
    raise UserError(f"{out} exists already; choose another --out or delete it")
  model, step, config = open_run(
    WORKDIR.value, step=STEP.value, params=WEIGHTS.value
  )
  partial = out.with_name(out.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  write_model(partial, model, config)
  shutil.copyfile(
    Path(WORKDIR.value) / inference.TOKENIZER, partial / inference.TOKENIZER
  )
  results = read_results(Path(WORKDIR.value))
  card = model_card(out.name, model, step, config, results)
  (partial / "README.md").write_text(card)
  check_equal(model, inference.load(partial))
  partial.rename(out)
  print(f"exported step {step} to {out}", flush=True)


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
  preprocessing = {
    name: config["data"][name]
    for name in (
      "num_frames",
      "image_size",
      "frames",
      "frame_stride",
      "min_crop_area",
      "flip",
    )
  }
  document = {
    "format_version": inference.FORMAT_VERSION,
    "model": build.as_dict(model.config),
    "preprocessing": preprocessing,
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


def read_results(workdir: Path) -> dict[str, dict[str, Any]]:
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
    f"* {parameters / 1e6:.2f} M parameters: video {c.video_size}, text"
    f" {c.text_size}, embedding {c.embedding_dim}",
    f"* input: {c.num_frames} frames of {c.image_size} x {c.image_size}, uint8"
    f" RGB; texts of up to {c.text_length} tokens",
    f"* trained for {step} of {config['total_steps']} steps of"
    f" {config['batch_size']} pairs on"
    f" {', '.join(Path(f).name for f in build.data_mix(config)[0])}",
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
    for metric, value in result["metrics"].items():
      if isinstance(value, (int, float)):
        chance = result["chance"][metric] if metric in result["chance"] else ""
        chance = f"{chance:.3f}" if chance != "" else ""
        lines.append(f"| {metric} | {value:.3f} | {chance} |")
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
  errors.run(main)
