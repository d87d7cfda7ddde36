"""How many pairs do not fit, and which: from held-out alignment scores.

A mismatched pair scores like a negative. Let u be the share of the negatives
below a pair's score and z = Phi^-1(u), so that mismatched pairs are N(0, 1).
Matched pairs are taken as an exponential tilt of that (Anderson, Biometrika
1972): N(b, 1), as in the equal-variance model of signal detection. Then

    f_given(z) = phi(z) [eta + (1 - eta) exp(b z - b^2 / 2)]
    P(fits | z) = 1 - eta / (eta + (1 - eta) exp(b z - b^2 / 2))

with (eta, b) by maximum likelihood. The bound of losses/density_ratio.py, which
assumes nothing of matched pairs but that they score higher, is the upper end:
eta <= inf_u F_given(u) / u. Resampled clips give the interval.
"""

import dataclasses

import numpy as np
from scipy.special import ndtri

TILTS = np.linspace(0.05, 5.0, 100)  # b
ITERATIONS = 40  # of eta at each b
SMALLEST_TAIL = 0.2  # u at which the bound is looked at, at least
RESAMPLES = 20
LARGEST_SAMPLE = 20_000  # pairs that the model is fitted on
INTERVAL = (2.5, 97.5)  # percent


@dataclasses.dataclass(frozen=True)
class Posterior:
  """What the scores say.

  Attributes:
    noise_rate: the estimate of eta.
    low, high: the ends of its interval, 95 %.
    tilt: b; matched pairs score higher than negatives with probability
      Phi(b / sqrt 2).
    confidence: P(fits), float32 [P].
  """

  noise_rate: float
  low: float
  high: float
  tilt: float
  confidence: np.ndarray


def probits(x: np.ndarray, negatives: np.ndarray) -> np.ndarray:
  """z of the scores x among the negatives (NaN left out), float64 [P]."""
  known = np.sort(negatives[np.isfinite(negatives)], axis=None)
  n = len(known)
  below = np.searchsorted(known, x, side="left")
  equal = np.searchsorted(known, x, side="right") - below
  u = (below + 0.5 * equal + 0.5) / (n + 1)
  return ndtri(np.clip(u, 1e-5, 1 - 1e-5))


def fit_tilt(z: np.ndarray) -> tuple[float, float]:
  """(eta, b) of the largest likelihood of z, float [P]."""
  ratio = np.exp(TILTS[:, None] * z - TILTS[:, None] ** 2 / 2)
  eta = np.full((len(TILTS), 1), 0.5)
  for _ in range(ITERATIONS):
    mixture = eta + (1 - eta) * ratio
    eta = (eta / mixture).mean(axis=1, keepdims=True)
  mixture = eta + (1 - eta) * ratio
  best = np.log(mixture).mean(axis=1).argmax()
  return float(eta[best, 0]), float(TILTS[best])


def bound(z: np.ndarray) -> float:
  """inf F_given(u) / u over u in [SMALLEST_TAIL, 1]."""
  u = np.linspace(SMALLEST_TAIL, 1.0, 81)
  given = np.searchsorted(np.sort(z), ndtri(u), side="right") / len(z)
  return float(min(1.0, (given / u).min()))


def estimate(z: np.ndarray, clip: np.ndarray, seed: int) -> Posterior:
  """Fits the mixture.

  Args:
    z: float [P], see `probits`.
    clip: int [P]; clips are resampled, with all their captions.
    seed: of the resampling.
  """
  rng = np.random.default_rng([seed, 3])
  sample = z
  owner = clip
  if len(z) > LARGEST_SAMPLE:
    chosen = rng.choice(len(z), LARGEST_SAMPLE, replace=False)
    sample, owner = z[chosen], clip[chosen]
  eta, b = fit_tilt(sample)
  _, owner = np.unique(owner, return_inverse=True)
  lows, highs = [], []
  for _ in range(RESAMPLES):
    counts = np.bincount(
      rng.integers(0, owner.max() + 1, owner.max() + 1),
      minlength=owner.max() + 1,
    )
    again = np.repeat(sample, counts[owner])
    lows.append(fit_tilt(again[: LARGEST_SAMPLE // 10])[0])
    highs.append(bound(again))
  high = max(eta, float(np.percentile(highs, INTERVAL[1])))
  low = min(eta, float(np.percentile(lows, INTERVAL[0])))
  return Posterior(eta, low, high, b, confidence_of(z, eta, b))


def confidence_of(z: np.ndarray, noise_rate: float, tilt: float) -> np.ndarray:
  """P(fits | z) of the mixture, float32 of the shape of z."""
  ratio = np.exp(np.minimum(tilt * z - tilt**2 / 2, 50.0))
  mixture = noise_rate + (1 - noise_rate) * ratio
  confidence = 1 - noise_rate / np.maximum(mixture, 1e-12)
  return confidence.astype(np.float32)
