"""The README of an exported model."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from etils import epath

from calince_jax import config as config_lib
from calince_jax.files import read_json
from calince_jax.inference.model import VideoTextModel


def read_results(workdir: epath.Path) -> dict[str, dict[str, Any]]:
  """What evaluate has written into a run folder so far, by task."""
  return {
    path.stem: read_json(path)
    for path in sorted((workdir / "eval").glob("*.json"))
  }


def model_card(
  name: str,
  model: VideoTextModel,
  step: int,
  config: dict[str, Any],
  results: dict[str, dict[str, Any]],
) -> str:
  """Writes the card, Markdown.

  Args:
    name: of the export's folder.
    model: what is exported.
    step: of its checkpoint.
    config: of the run.
    results: see `read_results`.
  """
  parts = [_description(name, model, step, config)]
  parts += [_results(task, result) for task, result in results.items()]
  return "\n".join([*parts, LIMITS])


LIMITS = """\
## Limits

The model knows the world of its training clips alone. The confidence is a \
probability only for pairs drawn as the training pairs were.
"""


def _description(name, model, step, config):
  c, objective = model.config, config["objective"]
  parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  folders = config_lib.data_mix(config)[0]
  return f"""\
# {name}

A video-text model trained with calince_jax: two encoders into one space, and \
a correspondence head that says whether a text belongs to a clip.

* {parameters / 1e6:.2f} M parameters: video {_tower(c.video)}, \
text {_tower(c.text)}, embedding {c.embedding_dim}
* input: {c.num_frames} frames of {c.image_size} x {c.image_size}, uint8 RGB; \
texts of up to {c.text_length} tokens
* trained for {step} of {config["total_steps"]} steps of \
{config["batch_size"]} pairs on {", ".join(Path(f).name for f in folders)}
* objective: confidence `{objective["confidence"]}`, weights \
{objective["correspondence_weight"]} (correspondence), \
{objective["contrastive_weight"]} (contrastive), \
{objective["predictive_weight"]} (predictive)

```python
import calince_jax
model = calince_jax.load("{name}")
video = model.encode_video(clips)  # uint8 [B, T, H, W, 3] -> \
[B, {c.embedding_dim}]
text = model.encode_text(["a caption"])
cosine = video @ text.T
```
"""


def _tower(settings):
  """Its name and, if it has one, its size."""
  said = dataclasses.asdict(settings)
  return "-".join(said[key] for key in ("name", "size") if key in said)


def _results(task, result):
  chance = result["chance"]
  lines = [f"## {task}", "", "| metric | value | chance |", "|---|---|---|"]
  for metric, value in result["metrics"].items():
    beside = f"{chance[metric]:.3f}" if metric in chance else ""
    lines.append(f"| {metric} | {value:.3f} | {beside} |")
  protocol = ", ".join(f"{k}: {v}" for k, v in result["protocol"].items())
  return "\n".join([*lines, "", f"Protocol: {protocol}.", ""])
