"""The persistent compile cache: a machine compiles each program once."""

import os
from pathlib import Path

import jax


def enable() -> None:
  """Keeps compiled programs in JAX_COMPILATION_CACHE_DIR, or ~/.cache."""
  folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  folder = folder or str(Path.home() / ".cache" / "calince_jax" / "xla")
  jax.config.update("jax_compilation_cache_dir", folder)
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
