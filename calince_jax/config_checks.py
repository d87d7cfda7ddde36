"""What each value of a configuration may be; configs/base.py says what it is.

Files and command lines are checked alike, before anything is made of them.
What two values must be to each other is checked where they meet (config.py).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from calince_jax.errors import UserError

# key: (type, range); brackets as in mathematics, ( and ) leave the bound out.
NUMBERS = {
  "seed": (int, "[0, 2147483647]"),
  "batch_size": (int, "[1, 1e9]"),
  "micro_batches": (int, "[1, 1e6]"),
  "total_steps": (int, "[1, 1e9]"),
  "log_every": (int, "[1, 1e9]"),
  "checkpoint_every": (int, "[1, 1e9]"),
  "keep_checkpoints": (int, "[1, 1e6]"),
  "max_bad_steps": (int, "[1, 1e9]"),
  "stall_seconds": (float, "[0, 1e9]"),
  "alarms.loss_spike": (float, "[0, 1e9]"),
  "alarms.effective_sample_share": (float, "[0, 1]"),
  "evaluate_every": (int, "[0, 1e9]"),
  "data.num_frames": (int, "[1, 4096]"),
  "data.image_size": (int, "[1, 4096]"),
  "data.frame_stride": (int, "[1, 1e6]"),
  "data.min_crop_area": (float, "(0, 1]"),
  "data.text_length": (int, "[3, 65536]"),  # begin, a word, end
  "data.max_bad_fraction": (float, "[0, 1]"),
  "data.mismatch": (float, "[0, 1)"),
  "data.mismatch_seed": (int, "[0, 2147483647]"),
  "model.temporal_depth": (int, "[0, 1000]"),
  "model.embedding_dim": (int, "[2, 65536]"),
  "model.dropout": (float, "[0, 1)"),
  "model.logit_scale": (float, "(0, 100]"),
  "model.logit_bias": (float, "[-1000, 1000]"),
  "model.head_hidden": (int, "[1, 65536]"),
  "model.predictive_depth": (int, "[0, 1000]"),
  "model.mask_rate": (float, "[0, 1]"),
  "objective.correspondence_weight": (float, "[0, 1e6]"),
  "objective.contrastive_weight": (float, "[0, 1e6]"),
  "objective.predictive_weight": (float, "[0, 1e6]"),
  "objective.num_negatives": (int, "[1, 1e6]"),
  "objective.noise_rate": (float, "[0, 1)"),
  "objective.floor": (float, "[0, 1]"),
  "objective.power": (float, "[0, 100]"),
  "objective.memory": (float, "[0, 1]"),
  "objective.warmup_share": (float, "[0, 1]"),
  "objective.ramp_share": (float, "[0, 1]"),
  "objective.histogram_decay": (float, "[0, 1]"),
  "similarities.tile": (int, "[1, 1e6]"),
  "similarities.keep": (int, "[0, 1e15]"),
  "optimizer.learning_rate": (float, "(0, 100]"),
  "optimizer.warmup_share": (float, "[0, 1)"),
  "optimizer.weight_decay": (float, "[0, 100]"),
  "optimizer.max_grad_norm": (float, "(0, 1e9]"),
  "optimizer.b1": (float, "[0, 1)"),
  "optimizer.b2": (float, "[0, 1)"),
  "optimizer.ema_decay": (float, "[0, 1)"),
  "sharding.model_parallel": (int, "[1, 1e6]"),
}
SWITCHES = (
  "data.flip",
  "data.cache",
  "model.scan",
  "model.head_detached",
  "model.cross_fit",
  "objective.mask_repeats",
  "objective.weigh_predictive",
)
TEXTS = (  # the choices are checked where they are made
  "evaluate_splits",
  "data.datasets",
  "data.weights",
  "data.split",
  "data.frames",
  "model.video_size",
  "model.text_size",
  "model.pooling",
  "model.dtype",
  "model.remat",
  "model.head",
  "model.predictive_task",
  "objective.contrastive",
  "objective.confidence",
  "objective.score",
  "similarities.form",
  "similarities.products",
  "similarities.kernel",
)
OPTIONAL = ("model.logit_bias", "objective.noise_rate")  # may be None
PAIRS = ("model.tubelet", "sharding.rules")
KEYS = (*NUMBERS, *SWITCHES, *TEXTS, *PAIRS)


def check(config: Any, where: str = "config") -> None:
  """Checks every key of a configuration.

  Args:
    config: nested dicts, of a config file or of a run's config.json.
    where: stands before the key in a message.

  Raises:
    UserError: a key is missing or unknown, or a value is of another type or
      out of its range.
  """
  if not isinstance(config, Mapping):
    raise UserError(f"{where} is {_shown(config)}, not a dictionary")
  flat = dict(_flatten(config))
  for words, names in (
    ("lacks the key", [key for key in KEYS if key not in flat]),
    ("has an unknown key", [key for key in flat if key not in KEYS]),
  ):
    if names:
      raise UserError(f"{where} {words} {names[0]!r}; see configs/base.py")
  for key, value in flat.items():
    check_value(key, value, f"{where}.{key}")


def check_value(key: str, value: Any, name: str) -> None:
  """UserError, which calls the value `name`, unless it fits the key."""
  if value is None and key in OPTIONAL:
    return
  if key in NUMBERS:
    check_number(*NUMBERS[key], value, name)
  elif key in SWITCHES:
    _demand(isinstance(value, bool), name, value, "True or False")
  elif key in TEXTS:
    _demand(isinstance(value, str), name, value, "a text")
  elif key == "model.tubelet":
    wanted = "two whole numbers, frames and pixels, at least 1"
    _demand(_is_list(value) and len(value) == 2, name, value, wanted)
    for part in value:
      _demand(type(part) is int and 1 <= part <= 4096, name, value, wanted)
  else:
    _check_rules(value, name)


def check_number(kind: type, interval: str, value: Any, name: str) -> None:
  """UserError unless `value` is a number of that type in the interval.

  Args:
    kind: int or float; an int is a float as well, a bool is neither.
    interval: such as "[0, 1)".
    value: what is checked.
    name: of the value, for the message.
  """
  low, high = map(float, interval[1:-1].split(","))
  fits = type(value) in (int, kind) and low <= value <= high  # nan does not
  fits = fits and not (value == low and interval[0] == "(")
  fits = fits and not (value == high and interval[-1] == ")")
  words = {int: "a whole number", float: "a number"}[kind]
  if fits or type(value) not in (int, float) or value > high or high < 1e6:
    words += f" in {interval}"
  else:
    words += f", {'at least' if interval[0] == '[' else 'above'} {low:g}"
  _demand(fits, name, value, words)


def _check_rules(value, name):
  wanted = "pairs of a regular expression and a rule"
  _demand(_is_list(value) and len(value) > 0, name, value, wanted)
  for rule in value:
    _demand(_is_list(rule) and len(rule) == 2, name, value, wanted)
    _demand(all(isinstance(part, str) for part in rule), name, value, wanted)
    try:
      re.compile(rule[0])
    except (re.error, OverflowError, RecursionError) as error:
      raise UserError(
        f"{name}: {rule[0][:80]!r} is no regular expression ({error})"
      ) from None


def _is_list(value):
  return isinstance(value, (list, tuple))


def _demand(fits, name, value, wanted):
  if not fits:
    raise UserError(f"{name}={_shown(value)} must be {wanted}")


def _shown(value):
  text = repr(value)
  return text if len(text) <= 80 else text[:77] + "..."


def _flatten(config: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """("model.head", "mlp") of each leaf."""
  for name, value in config.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value
