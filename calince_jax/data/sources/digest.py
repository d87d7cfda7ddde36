"""The digest of a source of several files."""

import hashlib
import json
import os
from collections.abc import Sequence

from calince_jax.files import file_sha256


def digest_of(paths: Sequence[str | os.PathLike], settings: object) -> str:
  """Returns the SHA-256, in hex, of files and of what else decides the list.

  Raises:
    UserError: a file cannot be read.
  """
  content = [[file_sha256(path) for path in paths], settings]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()
