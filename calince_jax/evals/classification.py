"""Recognition by a model's own classifier, which fine-tuning has trained."""

from collections.abc import Sequence

import numpy as np

from calince_jax.errors import UserError
from calince_jax.evals import recognition


def accuracy(
  probability: np.ndarray,
  classes: Sequence[str],
  labels: Sequence[str],
  *,
  seed: int,
) -> dict:
  """`top1`, `top5` and `mean_class` of the labelled clips, in percent.

  A clip whose class the classifier does not know counts as wrong.

  Args:
    probability: float [N, C].
    classes: the C names.
    labels: N names, "" for none: such a clip does not count.
    seed: of the bootstrap.

  Returns:
    {"metrics", "chance", "intervals", "protocol"}, see recognition.py.

  Raises:
    UserError: no clip has a label.
  """
  labels, classes = np.asarray(labels), np.asarray(classes)
  kept = labels != ""
  if not kept.any():
    raise UserError(
      "no clip of the split has a label: classification needs the manifest's"
      " `label` column"
    )
  labels = labels[kept]
  hits = recognition.hits_of(probability[kept], classes, labels)
  present, of_class = np.unique(labels, return_inverse=True)
  known = np.isin(present, classes)
  return {
    "metrics": recognition.accuracies(hits, of_class),
    "intervals": recognition.intervals(hits, of_class, seed),
    "chance": {
      "top1": 100 / len(classes) * float(known[of_class].mean()),
      "top5": 100
      * min(5, len(classes))
      / len(classes)
      * float(known[of_class].mean()),
      "mean_class": 100 / len(classes) * float(known.mean()),
    },
    "protocol": {
      "test clips": len(labels),
      "classes": len(classes),
      "test classes unknown to the classifier (counted as wrong)": int(
        np.sum(~known)
      ),
      "intervals": "95 %, clips taken as independent",
    },
  }
