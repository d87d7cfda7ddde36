"""How many pairs do not fit, and which: from held-out alignment scores.

A mismatched pair scores like a negative. Let u be the share of the negatives
below a pair's score and z = Phi^-1(u), so that mismatched pairs are N(0, 1).
Matched pairs are taken to be N(b, 1), the equal-variance model of signal
detection (Green and Swets, 1966):

    f_given(z) = phi(z) [eta + (1 - eta) exp(b z - b^2 / 2)]
    P(fits | z) = 1 - eta / (eta + (1 - eta) exp(b z - b^2 / 2))

with (eta, b) by maximum likelihood. The interval of eta begins where twice the
log likelihood, maximised over b and over a few spreads of the matched pairs,
falls by the 95 % point of chi^2_1: where nothing can be told apart, b = 0 and
every eta is as likely. It ends at the bound of losses/density_ratio.py,
eta <= inf_u F_given(u) / u, which assumes nothing of matched pairs but that
they score higher, with the bootstrap's error.
"""

import dataclasses

import numpy as np
from scipy.special import ndtr, ndtri

BIN = 0.05  # of z
EDGES = np.arange(-5, 5 + BIN / 2, BIN)
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2
RATES = np.linspace(0.0, 1.0, 201)  # eta
SHIFTS = np.linspace(0.0, 5.0, 101)  # b
SPREADS = (1.0, 1.1, 1.2)  # of matched pairs, for the low end
DROP = 3.84 / 2  # of the log likelihood, at the low end
SMALLEST_TAIL = 0.2  # u at which the bound is looked at, at least
RESAMPLES = 500
HIGH = 97.5  # percent


@dataclasses.dataclass(frozen=True)
class Posterior:
  """What the scores say.

  Attributes:
    noise_rate: the estimate of eta.
    low, high: the ends of its interval, 95 %.
    shift: b; matched pairs score higher than negatives with probability
      Phi(b / sqrt 2).
    confidence: P(fits), float32 [P].
  """

  noise_rate: float
  low: float
  high: float
  shift: float
  confidence: np.ndarray


def probits(x: np.ndarray, negatives: np.ndarray) -> np.ndarray:
  """z of the scores x among the negatives (NaN left out), float64 [P]."""
  known = np.sort(negatives[np.isfinite(negatives)], axis=None)
  n = len(known)
  below = np.searchsorted(known, x, side="left")
  equal = np.searchsorted(known, x, side="right") - below
  u = (below + 0.5 * equal + 0.5) / (n + 1)
  return ndtri(np.clip(u, 1e-5, 1 - 1e-5))


def estimate(z: np.ndarray, clip: np.ndarray, seed: int) -> Posterior:
  """Fits the mixture.

  Args:
    z: float [P], see `probits`.
    clip: int [P], the clip of each pair: the captions of one clip are not
      independent, and count together as one pair where the error is estimated.
    seed: of the resampling.
  """
  counts = np.histogram(z.clip(EDGES[0], EDGES[-1]), EDGES)[0]
  independent = len(np.unique(clip)) / len(z)
  likelihood = independent * _log_likelihood(counts, 1.0)
  rate, shift = np.unravel_index(likelihood.argmax(), likelihood.shape)
  eta, b = float(RATES[rate]), float(SHIFTS[shift])
  low = min(_low_end(independent * _log_likelihood(counts, s)) for s in SPREADS)
  rng = np.random.default_rng([seed, 3])
  draws = rng.multinomial(
    max(1, round(independent * len(z))), counts / counts.sum(), RESAMPLES
  )
  high = np.percentile(_bounds(draws), HIGH)
  return Posterior(
    eta,
    min(low, eta),
    float(max(high, eta)),
    b,
    confidence_of(z, eta, b),
  )


def confidence_of(z: np.ndarray, noise_rate: float, shift: float) -> np.ndarray:
  """P(fits | z) of the mixture, float32 of the shape of z."""
  ratio = np.exp(np.minimum(shift * z - shift**2 / 2, 50.0))
  mixture = noise_rate + (1 - noise_rate) * ratio
  confidence = 1 - noise_rate / np.maximum(mixture, 1e-12)
  return confidence.astype(np.float32)


def _log_likelihood(counts, spread):
  """Of each (eta, b), float64 [RATES, SHIFTS]; up to a constant."""
  b = SHIFTS[:, None]
  log_ratio = CENTRES**2 / 2 - ((CENTRES - b) / spread) ** 2 / 2
  ratio = np.exp(log_ratio) / spread
  used = counts > 0
  eta = RATES[:, None, None]
  mixture = eta + (1 - eta) * ratio[:, used]
  return np.log(np.maximum(mixture, 1e-300)) @ counts[used]


def _low_end(likelihood):
  profile = likelihood.max(axis=1)
  return float(RATES[profile >= profile.max() - DROP].min())


def _bounds(counts):
  """inf F_given(u) / u over u >= SMALLEST_TAIL, of each row of counts."""
  u = ndtr(EDGES[1:])
  given = np.cumsum(counts, axis=-1) / counts.sum(axis=-1, keepdims=True)
  ratio = np.where(u >= SMALLEST_TAIL, given / u, 1.0)
  return np.minimum(ratio.min(axis=-1), 1.0)
