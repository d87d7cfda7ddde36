"""What to change where training waits for its data."""

from collections.abc import Mapping
from typing import Any


def advice(data: Mapping[str, Any]) -> str:
  """Says which stage takes the time, and what makes it cheaper.

  Args:
    data: `config.data`.
  """
  T, S = data["num_frames"], data["image_size"]
  if data["cache"] and data["min_crop_area"] == 1:
    stage = "clips are in memory, decoded: only copied"
    changes = ["a larger model or more cores are all that helps"]
    if data["colour_jitter"]:
      stage += " and recoloured"
      changes.insert(0, "config.data.colour_jitter=0")
  else:
    stage = f"{T} frames of each clip are decoded and resized to {S} pixels"
    changes = []
    if data["resize"] == "antialiased":
      changes.append("config.data.resize=bilinear (a sixth of the cost)")
    if data["colour_jitter"]:
      changes.append("config.data.colour_jitter=0")
    changes += [
      f"prepare at a --short_side near {round(1.15 * S)}",
      "fewer config.data.num_frames",
      "more cores",
    ]
    if not data["cache"]:
      stage = f"records are read, and {stage}"
      changes.append("a local disk, or config.data.cache if they fit in memory")
  return (
    f"training waits for data. In each step {stage}; what helps:"
    f" {'; '.join(changes)}. python -m benchmarks.pipeline --data=DIR times"
    " each stage"
  )
