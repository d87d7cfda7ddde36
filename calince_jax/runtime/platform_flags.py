"""Settings of XLA for each platform, in one place, each with its reason.

`train` and `plan` set them before JAX is first used, so that a run is compiled
alike however it is launched, and a plan is of the program that is run. A flag
that the variable of the user names already is left as it is there.
"""

import importlib.util
import os
from collections.abc import MutableMapping

# Of libtpu, in LIBTPU_INIT_ARGS, which nothing else reads. There are none: what
# guides recommend (async collective fusion with all-gathers and over several
# steps, overlap with products, the two of data-parallel all-reduce) is the
# default by now. With and without it libtpu 0.0.42 compiles the same program,
# on v5e:2x4 and on two slices of it. And it ends on a flag that it does not
# know, so that each one here ties a run to its version.
TPU: dict[str, str] = {}
# In XLA_FLAGS, and only where JAX's GPU plugin is installed.
GPU = {
  # Collectives are moved away from the products that they would hold up.
  "xla_gpu_enable_latency_hiding_scheduler": "true",
}
GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def apply(environment: MutableMapping[str, str] = os.environ) -> list[str]:
  """Sets the flags of the platforms that are installed.

  Args:
    environment: changed; before JAX is first used.

  Returns:
    The flags that were added, as --NAME=VALUE.
  """
  added = []
  if _installed("libtpu"):
    added += _add(environment, "LIBTPU_INIT_ARGS", TPU)
  if any(map(_installed, GPU_PLUGINS)):
    added += _add(environment, "XLA_FLAGS", GPU)
  return added


def _installed(module):
  return importlib.util.find_spec(module) is not None


def _add(environment, variable, settings):
  before = environment.get(variable, "")
  named = {word.lstrip("-").partition("=")[0] for word in before.split()}
  added = [f"--{k}={v}" for k, v in settings.items() if k not in named]
  if added:
    environment[variable] = " ".join([*before.split(), *added])
  return added
