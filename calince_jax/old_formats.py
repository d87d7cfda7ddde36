"""What older versions wrote, brought to today's form when it is read.

Format 1 lacked some keys; format 2 had the keys of RENAMED under other names
and one flat section for both towers; format 3 had one way to resize pictures,
and did not centre embeddings. Runs and exports share the numbers.
"""

from collections.abc import Mapping
from typing import Any

# Since format 2: keys that format 1 lacks, with what it did then.
ADDED = {
  "micro_batches": 1,
  "stall_seconds": 1800,
  "alarms": {"loss_spike": 10.0, "effective_sample_share": 0.05},
  "data": {"max_bad_fraction": 0.01},
  "objective": {"mask_repeats": False},
  "similarities": {
    "form": "dense",
    "tile": 1024,
    "products": "float32",
    "keep": 2**23,
    "kernel": "xla",
  },
}
# Since format 3: (section, old name, new name).
RENAMED = (
  (None, "micro_batches", "grad_cache_chunks"),
  ("objective", "score", "scorer"),
  ("objective", "mask_repeats", "mask_duplicates"),
  ("similarities", "products", "matmul_dtype"),
  ("similarities", "keep", "max_saved_bytes"),
)
# Since format 3: keys that older formats lack, with what they did.
ADDED_IN_3 = {"objective": {"trust": "schedule"}, "sharding": {"slices": 0}}
# Since format 4: keys that older formats lack, with what they did, and what
# their `flip` is called.
ADDED_IN_4 = {
  "alarms": {"no_learning_steps": 0},
  "data": {"mismatch_kind": "uniform"},
  "model": {"centre": False},
}
# Keys that configurations of format 4 may lack, with what they did.
ADDED_TO_4 = {
  "data": {"confidences": ""},
  "init": {"video": "", "text": "", "model": ""},
  "model": {"classes": []},
  "objective": {"classification_weight": 0.0, "label_smoothing": 0.0},
  "optimizer": {
    "multipliers": [],
    "layer_decay": 1.0,
    "trained_blocks": 0,
    "frozen": "",
  },
}
EXPORT_ADDED_TO_4 = {"model": {"classes": []}}
EXPORT_IN_4 = {"model": {"centre": False}}
SAMPLING_IN_4 = {"resize": "antialiased", "colour_jitter": 0.0}
FLIPS = {False: "never", True: "always"}
# Since format 3 each tower has a section: old key -> (tower, new key), ...
TOWERS = {
  "video_size": (("video", "size"),),
  "text_size": (("text", "size"),),
  "temporal_depth": (("video", "temporal_depth"),),
  "tubelet": (("video", "tubelet"),),
  "pooling": (("video", "pooling"), ("text", "pooling")),
}
# The tokenizer's ids that models of format 2 knew by heart.
SPECIAL_IDS = {"mask_id": 4, "control_ids": [0, 2, 3]}


def upgrade_config(version: int, config: Mapping[str, Any]) -> dict[str, Any]:
  """A run's configuration of format `version`, in today's form.

  What is not of the old form is left as it stands: the check of the result
  names it.
  """
  config = dict(config)
  if version < 2:
    config = _with_added(config, ADDED)
  if version < 3:
    config = _with_added(config, ADDED_IN_3)
    for section, old, new in RENAMED:
      if section is None:
        config = _renamed(config, old, new)
      elif isinstance(config.get(section), Mapping):
        config[section] = _renamed(config[section], old, new)
    if isinstance(config.get("model"), Mapping):
      config["model"] = _with_towers(config["model"])
  if version < 4:
    config = _with_added(config, ADDED_IN_4)
    if isinstance(config["data"], Mapping):
      config["data"] = _with_sampling(config["data"])
  return _with_added(config, ADDED_TO_4)


def upgrade_export(version: int, document: Mapping[str, Any]) -> dict[str, Any]:
  """An export's config.json of format `version`, in today's form."""
  document = dict(document)
  if version < 3:
    if isinstance(document.get("model"), Mapping):
      document["model"] = _with_towers(document["model"]) | SPECIAL_IDS
    if isinstance(document.get("calibration"), Mapping):
      document["calibration"] = _renamed(
        document["calibration"], "score", "scorer"
      )
  if version < 4:
    document = _with_added(document, EXPORT_IN_4)
    if isinstance(document.get("preprocessing"), Mapping):
      document["preprocessing"] = _with_sampling(document["preprocessing"])
  if "model" in document:  # its absence is said by who reads it
    document = _with_added(document, EXPORT_ADDED_TO_4)
  return document


def _with_added(config, added):
  filled = {**added, **config}
  for key, value in added.items():
    if isinstance(value, dict) and isinstance(filled[key], Mapping):
      filled[key] = _with_added(filled[key], value)
  return filled


def _renamed(section, old, new):
  return {new if key == old else key: value for key, value in section.items()}


def _with_sampling(data):
  data = {**SAMPLING_IN_4, **data}
  if isinstance(data.get("flip"), bool):
    data["flip"] = FLIPS[data["flip"]]
  return data


def _with_towers(model):
  changed = {key: value for key, value in model.items() if key not in TOWERS}
  towers = {
    "video": {"name": "vit", "pixels": "scaled"},
    "text": {"name": "transformer"},
  }
  for key, places in TOWERS.items():
    for tower, name in places:
      if key in model:
        towers[tower][name] = model[key]
  return changed | towers
