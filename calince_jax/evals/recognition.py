"""Action recognition by a linear probe on frozen features.

The probe is a logistic regression on standardised features. Its regularisation
is chosen by cross-validation inside the training clips; the test clips are
looked at once, at the end.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri
from sklearn import linear_model, model_selection, pipeline, preprocessing

from calince_jax.errors import UserError

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C, small = strong penalty
FOLDS = 3
RESAMPLES = 2000


def linear_probe(
  train_features: np.ndarray,
  train_labels: Sequence[str],
  test_features: np.ndarray,
  test_labels: Sequence[str],
  *,
  seed: int,
  train_groups: Sequence[str] | None = None,
  strengths: Sequence[float] = STRENGTHS,
) -> dict:
  """Fits on the training clips and evaluates on the test clips, in percent.

  `top1` and `top5` are shares of clips, `mean_class` the mean over the test
  classes of the share that is right. A test clip whose class no training clip
  has counts as wrong.

  Args:
    train_features: float [N, D].
    train_labels: N class names.
    test_features: float [M, D].
    test_labels: M class names.
    seed: of the folds and of the bootstrap.
    train_groups: N names of what must not be on both sides of a fold (clips
      cut from one video); None if every clip stands alone.
    strengths: the values of C to choose from.

  Returns:
    {"metrics", "chance", "majority": {"top1", "top5", "mean_class"},
    "intervals": the same with [low, high], 95 %: Wilson for top1 and top5,
    bootstrap over clips within each class for mean_class,
    "protocol": what was done, with the clips and classes that it concerned}.
    `chance` guesses one of the training classes, `majority` always names the
    most frequent ones.

  Raises:
    UserError: a clip without a label, features that are not finite, or fewer
      than two training classes.
  """
  train, train_labels = _checked("training", train_features, train_labels)
  test, test_labels = _checked("test", test_features, test_labels)
  classes, train_class = np.unique(train_labels, return_inverse=True)
  if len(classes) < 2:
    raise UserError("a linear probe needs at least two classes in training")
  strength, how = _choose_strength(
    train, train_class, train_groups, strengths, seed
  )
  probe = _probe(strength).fit(train, train_class)
  votes = probe.decision_function(test)
  if votes.ndim == 1:  # two classes
    votes = np.stack([-votes, votes], axis=1)
  frequency = np.bincount(train_class)

  test_classes, of_class = np.unique(test_labels, return_inverse=True)
  known = np.isin(test_classes, classes)
  hits = hits_of(votes, classes, test_labels)
  usual = np.broadcast_to(frequency, votes.shape)
  uniform = {1: 1 / len(classes), 5: min(5, len(classes)) / len(classes)}
  return {
    "metrics": accuracies(hits, of_class),
    "intervals": intervals(hits, of_class, seed),
    "chance": {
      "top1": 100 * uniform[1] * float(known[of_class].mean()),
      "top5": 100 * uniform[5] * float(known[of_class].mean()),
      "mean_class": 100 * uniform[1] * float(known.mean()),
    },
    "majority": accuracies(hits_of(usual, classes, test_labels), of_class),
    "protocol": {
      "probe": "logistic regression on standardised frozen features",
      "regularisation": f"C = {strength:g}, {how}",
      "training clips": len(train),
      "training classes": len(classes),
      "test clips": len(test),
      "test classes": len(test_classes),
      "test classes unknown in training (counted as wrong)": int(
        np.sum(~known)
      ),
      "test clips of unknown classes": int(np.sum(~known[of_class])),
      "intervals": "95 %, clips taken as independent",
    },
  }


def wilson(right: float, total: int) -> list[float]:
  """The 95 % score interval of a share, [low, high] in percent.

  (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96.
  """
  p, n, z = right / total, total, ndtri(0.975)
  middle = p + z**2 / (2 * n)
  half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  scale = 100 / (1 + z**2 / n)
  low, high = scale * (middle - half), scale * (middle + half)
  return [max(float(low), 0.0), min(float(high), 100.0)]


def _probe(strength: float) -> pipeline.Pipeline:
  return pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(C=strength, max_iter=2000),
  )


def _choose_strength(
  features: np.ndarray,
  classes: np.ndarray,
  groups: Sequence[str] | None,
  strengths: Sequence[float],
  seed: int,
) -> tuple[float, str]:
  """The C of the best cross-validated accuracy, the smaller one if equal.

  Only classes with a clip (or a group) for every fold vote: a class that is
  on one side of a fold alone says nothing about C.
  """
  groups = np.arange(len(classes)) if groups is None else np.asarray(groups)
  if len(groups) != len(classes):
    raise UserError(f"{len(classes)} labels but {len(groups)} groups")
  num_groups = np.array(
    [len(set(groups[classes == c])) for c in range(classes.max() + 1)]
  )
  usable = num_groups >= FOLDS
  if usable.sum() < 2:
    return 1.0, "not chosen: too few clips per class to cross-validate"
  voters = usable[classes]
  folds = model_selection.StratifiedGroupKFold(
    FOLDS, shuffle=True, random_state=seed
  )
  search = model_selection.GridSearchCV(
    _probe(1.0),
    {"logisticregression__C": sorted(strengths)},
    cv=folds,
    refit=False,
    error_score="raise",
  )
  search.fit(features[voters], classes[voters], groups=groups[voters])
  how = f"chosen by {FOLDS}-fold cross-validation in the training clips"
  if not usable.all():
    how += f", without {np.sum(~usable)} classes of too few clips"
  return search.best_params_["logisticregression__C"], how


def _checked(
  what: str, features: np.ndarray, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  features, labels = np.asarray(features, np.float64), np.asarray(labels)
  if len(features) != len(labels) or not len(labels):
    raise UserError(f"{len(features)} {what} clips but {len(labels)} labels")
  if not np.isfinite(features).all():
    raise UserError(f"the {what} features hold NaN or infinity")
  if (labels == "").any():
    raise UserError(
      f"{np.sum(labels == '')} {what} clips have no label: recognition needs "
      "the manifest's `label` column"
    )
  return features, labels


def hits_of(
  votes: np.ndarray, classes: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
  """Which clips have their class first, or among the first five, bool [N].

  Args:
    votes: float [N, C].
    classes: C names.
    labels: N names.
  """
  ranking = np.argsort(-votes, axis=1, kind="stable")
  right = classes[ranking[:, :5]] == labels[:, None]
  return {"top1": right[:, 0], "top5": right.any(axis=1)}


def accuracies(
  hits: dict[str, np.ndarray], of_class: np.ndarray
) -> dict[str, float]:
  """top1, top5 and mean_class of `hits_of`, in percent; of_class int [N]."""
  share, _ = _share_per_class(hits["top1"], of_class)
  return {name: 100 * float(hit.mean()) for name, hit in hits.items()} | {
    "mean_class": 100 * float(share.mean())
  }


def intervals(
  hits: dict[str, np.ndarray], of_class: np.ndarray, seed: int
) -> dict[str, list[float]]:
  """The 95 % interval of each of `accuracies`, [low, high]."""
  share, count = _share_per_class(hits["top1"], of_class)
  rng = np.random.default_rng(seed)
  # Resampling the clips of a class with replacement = a binomial draw.
  draws = rng.binomial(count, share, (RESAMPLES, len(count))) / count
  low, high = np.percentile(100 * draws.mean(axis=1), [2.5, 97.5])
  return {
    name: wilson(int(hit.sum()), len(hit)) for name, hit in hits.items()
  } | {"mean_class": [float(low), float(high)]}


def _share_per_class(
  hit: np.ndarray, of_class: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  count = np.bincount(of_class)
  return np.bincount(of_class, weights=hit) / count, count
