"""Features of all pairs as two matrices, on disk, ready to be walked in blocks.

Each set of features is centred and scaled to a mean square length of 1; the
sets are put side by side, and reduced to their first principal components
where they are wider than MAX_WIDTH. Captions always have TF-IDF features of
their own words as well, so that no text model is needed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from calince_jax.cleaning.features import Features
from calince_jax.files import atomic_file

MAX_WIDTH = 512
BLOCK = 8192  # rows
MAX_WORDS = 50_000  # of the vocabulary, the commonest
TFIDF_WIDTH = 200
SAMPLE = 50_000  # captions that the TF-IDF components are fitted on


def tfidf_features(texts: Sequence[str], seed: int) -> np.ndarray:
  """Components of the captions' words and pairs of words, float32 [P, <= 200].

  TF-IDF (Sparck Jones, 1972) and its truncated SVD, known as latent semantic
  analysis (Deerwester et al., 1990). A caption without a word that another one
  has gets zeros.
  """
  smallest = 2 if len(texts) > 20 else 1
  vectorizer = TfidfVectorizer(
    ngram_range=(1, 2),
    min_df=smallest,
    max_features=MAX_WORDS,
    sublinear_tf=True,
    dtype=np.float32,
  )
  try:
    counts = vectorizer.fit_transform(texts)
  except ValueError:  # no word that appears twice
    return np.zeros((len(texts), 1), np.float32)
  width = min(TFIDF_WIDTH, counts.shape[1] - 1, counts.shape[0] - 1)
  if width < 1:
    return counts.toarray()
  svd = TruncatedSVD(width, random_state=seed)
  rng = np.random.default_rng(seed)
  size = min(SAMPLE, counts.shape[0])
  sample = np.sort(rng.choice(counts.shape[0], size, replace=False))
  svd.fit(counts[sample])
  return np.concatenate(
    [
      svd.transform(counts[i : i + BLOCK]).astype(np.float32)
      for i in range(0, counts.shape[0], BLOCK)
    ]
  )


def write_matrix(
  path: Path, sets: Sequence[Features | np.ndarray], rows: int
) -> np.ndarray:
  """Joins sets of features into one matrix on disk, once.

  Args:
    path: *.npy; if it is there already, it is opened as it is.
    sets: of `rows` rows each.
    rows: N.

  Returns:
    float32 [N, D], D at most MAX_WIDTH, a memory map; columns have mean 0.
  """
  if not path.exists():
    means, scales = zip(*(_moments(s, rows) for s in sets), strict=True)
    mean, scale = np.concatenate(means), np.concatenate(scales)
    width = len(mean)
    axes = np.eye(width, dtype=np.float32)
    if width > MAX_WIDTH:
      covariance = np.zeros((width, width))
      for _, block in _blocks(sets, rows, mean, scale):
        covariance += block.T @ block
      axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :MAX_WIDTH]
      # An eigenvector's sign is arbitrary: the same on every machine.
      axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(MAX_WIDTH)])
      axes = axes.astype(np.float32)
    with atomic_file(path) as partial, partial.open("wb") as file:
      shape = {"descr": "<f4", "fortran_order": False}
      shape["shape"] = (rows, axes.shape[1])
      np.lib.format.write_array_header_1_0(file, shape)
      for _, block in _blocks(sets, rows, mean, scale):
        file.write((block @ axes).astype("<f4").tobytes())
  return np.load(path, mmap_mode="r")


def _block(features, start, stop):
  if isinstance(features, Features):
    return features.block(start, stop)
  return features[start:stop]


def _moments(features, rows):
  """The mean of each column, and one scale for all of them."""
  total, square = 0.0, 0.0
  for i in range(0, rows, BLOCK):
    block = _block(features, i, i + BLOCK).astype(np.float64)
    total = total + block.sum(axis=0)
    square += (block**2).sum()
  mean = total / rows
  variance = square / rows - (mean**2).sum()
  scale = 1.0 / np.sqrt(max(variance, 1e-12))
  return mean.astype(np.float32), np.full(len(mean), scale, np.float32)


def _blocks(sets, rows, mean, scale) -> Iterator[tuple[int, np.ndarray]]:
  for i in range(0, rows, BLOCK):
    joined = np.concatenate([_block(s, i, i + BLOCK) for s in sets], axis=1)
    yield i, (joined - mean) * scale
