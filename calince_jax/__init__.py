"""calince_jax: calibrated video-text pre-training from noisy pairs."""

import os
import signal
import sys

__version__ = "0.1.0"


def load(directory):
  """Loads an exported model; see calince_jax/inference/exported.py."""
  # Imported here, so that `import calince_jax` costs nothing.
  from calince_jax.inference import exported

  return exported.load(directory)


def _interrupted(*_):
  os.write(2, b"error: interrupted while starting\n")
  os._exit(2)


# While a command (python -m calince_jax.NAME) imports its libraries, Ctrl-C
# would be a traceback out of their midst; cli.run then handles it.
if (
  sys.argv[:1] == ["-m"]
  and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
  signal.signal(signal.SIGINT, _interrupted)
