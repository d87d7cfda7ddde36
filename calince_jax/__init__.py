"""calince_jax: calibrated video-text pre-training from noisy pairs."""

__version__ = "0.1.0"


def load(directory):
  """Loads an exported model; see calince_jax/inference/exported.py."""
  # Imported here, so that `import calince_jax` costs nothing.
  from calince_jax.inference import exported

  return exported.load(directory)
