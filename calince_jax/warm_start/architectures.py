"""Published architectures: which tower each is, and with which settings.

A folder's config.json says the architecture (`model_type`) and its sizes; what
it leaves out has the value that the architecture was published with. What our
towers do not compute is refused.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calince_jax import fields
from calince_jax.errors import UserError
from calince_jax.files import read_json
from calince_jax.inference import exported
from calince_jax.models import transformer
from calince_jax.models.frame_vit import FrameViTSettings
from calince_jax.warm_start.weights import CONFIG

PREPROCESSOR = "preprocessor_config.json"
SENTENCE_POOLING = "1_Pooling/config.json"  # of sentence-transformers
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "quick_gelu": "quick_gelu",
}
_HALF = (0.5, 0.5, 0.5)
_BASE = {
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-12,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """How an architecture appears in a folder.

  Attributes:
    tower: the name of ours.
    published: keys of config.json with their values where it lacks them.
    section: of config.json that holds them, if it holds two towers.
    probe: the end of a name that its weights have.
    settings: of our tower, beside what the sizes say.
    refused: keys with the only value that our tower computes.
  """

  tower: str
  published: Mapping[str, Any]
  section: str | None
  probe: str
  settings: Mapping[str, Any]
  refused: Mapping[str, Any]


_CONVOLUTION = "embeddings.patch_embeddings.projection.weight"
_VIT = Architecture(
  tower="frame_vit",
  published=_BASE | {"patch_size": 16},
  section=None,
  probe=_CONVOLUTION,
  settings={
    "pooling": "cls",
    "class_token": True,
    "input_norm": False,
    "layer_scale": False,
    "pixel_mean": _HALF,
    "pixel_std": _HALF,
  },
  refused={"num_channels": 3, "qkv_bias": True},
)
_DINOV2 = dataclasses.replace(
  _VIT,
  published=_BASE | {"patch_size": 14, "layer_norm_eps": 1e-6, "mlp_ratio": 4},
  settings=_VIT.settings
  | {
    "layer_scale": True,
    "pixel_mean": (0.485, 0.456, 0.406),
    "pixel_std": (0.229, 0.224, 0.225),
  },
  refused=_VIT.refused | {"use_swiglu_ffn": False},
)
_CLIP = dataclasses.replace(
  _VIT,
  published=_BASE
  | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32},
  section="vision_config",
  probe="embeddings.class_embedding",
  settings=_VIT.settings
  | {
    "input_norm": True,
    "pixel_mean": (0.48145466, 0.4578275, 0.40821073),
    "pixel_std": (0.26862954, 0.26130258, 0.27577711),
  },
  refused={"num_channels": 3},
)
_SIGLIP = dataclasses.replace(
  _CLIP,
  published=_BASE
  | {
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "patch_size": 16,
  },
  probe="embeddings.patch_embedding.weight",
  settings=_VIT.settings | {"class_token": False, "pooling": "map"},
  refused={"num_channels": 3, "vision_use_head": True},
)
_BERT = Architecture(
  tower="bert",
  published=_BASE,
  section=None,
  probe="embeddings.word_embeddings.weight",
  settings={"pooling": "cls"},
  refused={
    "position_embedding_type": "absolute",
    "is_decoder": False,
  },
)
# DistilBERT's keys, and the number that it does not write.
_DISTILBERT_KEYS = {
  "hidden_size": "dim",
  "num_hidden_layers": "n_layers",
  "num_attention_heads": "n_heads",
  "intermediate_size": "hidden_dim",
  "hidden_act": "activation",
}
_CLIP_TEXT = Architecture(
  tower="clip_text",
  published=_BASE
  | {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
  },
  section="text_config",
  probe="embeddings.token_embedding.weight",
  settings={},
  refused={},
)
# The folder that benchmarks/i3d_weights.py makes.
_I3D = Architecture(
  tower="i3d",
  published={},
  section=None,
  probe="Conv3d_1a_7x7.weight",
  settings={},
  refused={},
)
# {of which tower: {model_type: architecture}}
KNOWN = {
  "video": {
    "vit": _VIT,
    "dinov2": _DINOV2,
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "i3d": _I3D,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
  },
  "text": {
    "bert": _BERT,
    "distilbert": dataclasses.replace(
      _BERT,
      published=_BASE | {"num_hidden_layers": 6},
      refused={"sinusoidal_pos_embds": False},
    ),
    "clip": _CLIP_TEXT,
    "clip_text_model": _CLIP_TEXT,
  },
}


def read_config(folder: str | Path) -> dict[str, Any]:
  """A folder's config.json; UserError where there is none."""
  path = Path(folder) / CONFIG
  if not path.is_file():
    raise UserError(f"{folder} is not a folder of weights: no {CONFIG}")
  return read_json(path)


def is_export(config: Mapping[str, Any]) -> bool:
  """Whether a config.json is one of this program's exports."""
  return "format_version" in config


def of_folder(
  folder: str | Path, kind: str, config: Mapping[str, Any]
) -> tuple[str, Architecture]:
  """The architecture of a folder: its `model_type`, and what is known of it.

  Args:
    folder: for messages.
    kind: `video` or `text`.
    config: its config.json.

  Raises:
    UserError: it is none that a tower of this kind computes.
  """
  name = config.get("model_type")
  known = KNOWN[kind]
  if not isinstance(name, str) or name not in known:
    raise UserError(
      f"{folder} is of the architecture {name!r}; a {kind} tower starts from"
      f" one of {sorted(known)}, or from an export of this program"
    )
  return name, known[name]


def tower_settings(folder: str | Path, kind: str) -> dict[str, Any]:
  """The settings of the tower that a folder's weights are of.

  `pooling` is how they were used, and any other fits; `temporal_depth` is not
  among them.

  Args:
    folder: with config.json, as transformers or our export writes it.
    kind: `video` or `text`.

  Raises:
    UserError: the architecture is unknown, or has what no tower computes.
  """
  config = read_config(folder)
  if is_export(config):
    said = exported.read_document(Path(folder) / CONFIG)["model"][kind]
    return {
      key: tuple(value) if fields.is_list(value) else value
      for key, value in said.items()
    }
  name, architecture = of_folder(folder, kind, config)
  if not architecture.published:
    return {"name": architecture.tower}
  where = f"{folder}/{CONFIG}"
  values = config
  if architecture.section and isinstance(
    config.get(architecture.section), Mapping
  ):
    values = config[architecture.section]
  for key, wanted in architecture.refused.items():
    if values.get(key, wanted) != wanted:
      raise UserError(
        f"{where}: {key}={values[key]!r} is not computed by the tower"
        f" {architecture.tower}"
      )
  said = {
    key: values.get(
      _DISTILBERT_KEYS.get(key, key) if name == "distilbert" else key, published
    )
    for key, published in architecture.published.items()
  }
  for key, value in said.items():
    if key != "hidden_act" and not (
      type(value) in (int, float) and 0 < value < 1e6
    ):
      raise UserError(f"{where}: {key}={fields.shown(value)} is no number")
  if "mlp_ratio" in said:
    said["intermediate_size"] = said["hidden_size"] * said["mlp_ratio"]
  activation = fields.shown(said["hidden_act"])
  if said["hidden_act"] not in list(ACTIVATIONS):
    raise UserError(
      f"{where}: the activation {activation} is not computed by the"
      f" tower {architecture.tower}"
    )
  parts = ("hidden_size", "num_hidden_layers", "num_attention_heads")
  size = "x".join(str(said[key]) for key in (*parts, "intermediate_size"))
  if not transformer.is_size(size):
    raise UserError(f"{where}: a size of {size} makes no tower")
  settings = {
    "name": architecture.tower,
    "size": size,
    "activation": ACTIVATIONS[said["hidden_act"]],
    "epsilon": float(said["layer_norm_eps"]),
    **architecture.settings,
  }
  sentences = Path(folder) / SENTENCE_POOLING
  if settings["name"] == "bert" and sentences.is_file():
    mean = read_json(sentences).get("pooling_mode_mean_tokens")
    settings["pooling"] = "mean" if mean is True else settings["pooling"]
  if kind == "video":
    settings |= {"patch": said["patch_size"]} | _pixels(folder)
  return settings


def _pixels(folder):
  """The mean and deviation of preprocessor_config.json, {} without it."""
  path = Path(folder) / PREPROCESSOR
  if not path.is_file():
    return {}
  said = read_json(path)
  keys = {"pixel_mean": "image_mean", "pixel_std": "image_std"}
  found = {}
  for ours, theirs in keys.items():
    if theirs in said:
      annotation = fields.annotations(FrameViTSettings)[ours]
      fields.check_value(annotation, said[theirs], f"{path}: {theirs}")
      found[ours] = tuple(said[theirs])
  return found
