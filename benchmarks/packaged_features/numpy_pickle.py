"""Pickles of numpy arrays, of which nothing else is admitted."""

import pickle

import numpy as np

_RECONSTRUCT = np._core.multiarray._reconstruct
ADMITTED = {
  ("numpy", "dtype"): np.dtype,
  ("numpy", "ndarray"): np.ndarray,
  ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # of numpy 1
  ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class NumpyUnpickler(pickle.Unpickler):
  """Loads arrays in plain containers."""

  def find_class(self, module: str, name: str) -> object:
    """The few functions that arrays need; an error for any other."""
    if (module, name) not in ADMITTED:
      raise pickle.UnpicklingError(f"{module}.{name} is not an array")
    return ADMITTED[module, name]
