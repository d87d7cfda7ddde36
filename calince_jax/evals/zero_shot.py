"""Recognition without training: the class whose prompts a clip is nearest to.

A class is the mean of the embeddings of its name in several sentences, as in
CLIP (Radford et al., 2021).
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

PROMPTS = ("{}", "a video of {}", "a person is {}", "someone doing {}")


def as_words(label: str) -> str:
  """ApplyEyeMakeup and apply_eye_makeup as "apply eye makeup"."""
  label = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
  return label.replace("_", " ").lower()


def class_embeddings(
  classes: Sequence[str],
  encode_text: Callable[[list[str]], np.ndarray],
  prompts: Sequence[str] = PROMPTS,
) -> np.ndarray:
  """The embedding of each class, float32 [C, D], L2-normalised.

  Args:
    classes: C names.
    encode_text: from n texts to their embeddings, float32 [n, D].
    prompts: sentences with {} in place of the name.
  """
  total = sum(
    encode_text([prompt.format(as_words(name)) for name in classes])
    for prompt in prompts
  )
  norm = np.linalg.norm(total, axis=1, keepdims=True)
  return total / np.maximum(norm, 1e-6)
