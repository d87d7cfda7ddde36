"""Each loss against plain loops in float64, its limits, and other packages."""

import functools
import itertools
import json
import math
from pathlib import Path

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calince_jax.losses import moments, noise_robust
from calince_jax.losses.calibrated_nce import pair_losses, similarity
from calince_jax.runtime.sharding import make_mesh

GOLDENS = Path(__file__).parent / "goldens" / "noise_robust.json"


def similarities(rng, n, scale):
  """float32 values, held in float64: both sides start from the same numbers."""
  cosine = rng.uniform(-1, 1, size=(n, n))
  return np.float64(np.float32(scale * cosine))


def momentum_of(S):
  """Another matrix of the same size; differs from S in every row."""
  return 0.5 * S[::-1] + 0.3


def groups(n):
  """Pairs 0, 3, 6, ... are of one clip; and so on."""
  return np.array([[i % 3 == j % 3 for j in range(n)] for i in range(n)])


# Plain loops in float64.


def exps(values):
  return sum(math.exp(value) for value in values)


def softmax(values):
  return [math.exp(value) / exps(values) for value in values]


def both_directions(one_row):
  """Of rows and of columns: one_row(i, all its logits), averaged."""

  def reference(S):
    n = len(S)
    return [
      0.5
      * (
        one_row(i, [S[i][j] for j in range(n)])
        + one_row(i, [S[j][i] for j in range(n)])
      )
      for i in range(n)
    ]

  return reference


def rince_loops(S, q, lam):
  def one_row(i, row):
    return -math.exp(q * row[i]) / q + (lam * exps(row)) ** q / q

  return both_directions(one_row)(S)


def gce_loops(S, q):
  return both_directions(lambda i, row: (1 - softmax(row)[i] ** q) / q)(S)


def mixture_loops(S, pi):
  def one_row(i, row):
    return -math.log(pi * softmax(row)[i] + (1 - pi) / len(row))

  return both_directions(one_row)(S)


def cross_entropy(target, row):
  p = softmax(row)
  return -sum(target[j] * math.log(p[j]) for j in range(len(row)))


def albef_loops(S, M, alpha):
  n, losses = len(S), []
  for i in range(n):
    total = 0.0
    for row, other in ((S[i], M[i]), (S[:, i], M[:, i])):
      soft = softmax(other)
      target = [alpha * soft[j] + (1 - alpha) * (i == j) for j in range(n)]
      total += 0.5 * cross_entropy(target, row)
    losses.append(total)
  return losses


def sinkhorn_loops(S, iterations):
  """Divides rows and columns by their sums in turn, the rows once more."""
  n = len(S)
  plan = [[math.exp(S[i][j]) for j in range(n)] for i in range(n)]

  def normalise_rows():
    for i in range(n):
      total = sum(plan[i])
      plan[i] = [value / total for value in plan[i]]

  for _ in range(iterations):
    normalise_rows()
    totals = [sum(plan[i][j] for i in range(n)) for j in range(n)]
    for i in range(n):
      plan[i] = [plan[i][j] / totals[j] for j in range(n)]
  normalise_rows()
  return np.array(plan)


def norton_loops(S, beta, iterations):
  n, losses = len(S), []
  Q = sinkhorn_loops(S, iterations)
  for i in range(n):
    total = 0.0
    for row, plan in ((S[i], Q[i]), (S[:, i], Q[:, i] / sum(Q[:, i]))):
      target = [beta * plan[j] + (1 - beta) * (i == j) for j in range(n)]
      total += 0.5 * cross_entropy(target, row)
    losses.append(total)
  return losses


def siglip_loops(S):
  def one_row(i, row):
    total = 0.0
    for j, logit in enumerate(row):
      y = 1 if i == j else -1
      total += math.log(1 + math.exp(-y * logit))
    return total

  return both_directions(one_row)(S)


def mil_nce_loops(S, positives, copies):
  n, losses = len(S), []
  for i in range(n):
    entries = {(i, j) for j in range(n)} | {(j, i) for j in range(n)}
    right = exps(S[e] for e in entries if positives[e])
    wrong = exps(S[e] for e in entries if not positives[e])
    losses.append(-math.log(right / (copies * right + wrong)))
  return losses


def robust_xid_loops(cosine, mean, std, delta, kappa, w_min):
  weights = []
  for c in cosine:
    z = (c - (mean + delta * std)) / (math.sqrt(kappa) * std)
    phi = 0.5 * (1 + math.erf(z / math.sqrt(2)))
    weights.append(w_min + (1 - w_min) * phi)
  return weights


# name: (function of S, the same in plain loops)
CASES = {
  f"rince_{q}_{lam}": (
    functools.partial(noise_robust.rince, q=q, lam=lam),
    functools.partial(rince_loops, q=q, lam=lam),
  )
  for q in (0.1, 0.5)
  for lam in (0.01, 0.5)
}
CASES |= {
  f"gce_{q}": (
    functools.partial(noise_robust.gce, q=q),
    functools.partial(gce_loops, q=q),
  )
  for q in (0.1, 0.7, 1.0)
}
CASES |= {
  f"mixture_{pi}": (
    functools.partial(noise_robust.mixture, pi=pi),
    functools.partial(mixture_loops, pi=pi),
  )
  for pi in (0.3, 0.9)
}
CASES |= {
  "albef": (
    lambda S: noise_robust.albef(S, momentum_of(S), alpha=0.4),
    lambda S: albef_loops(S, momentum_of(S), 0.4),
  ),
  "norton": (
    lambda S: noise_robust.norton(S, beta=0.3, iterations=5),
    lambda S: norton_loops(S, 0.3, 5),
  ),
  "siglip": (noise_robust.siglip, siglip_loops),
}
CASES |= {
  f"mil_nce_{variant}_{mask.__name__}": (
    lambda S, variant=variant, mask=mask: noise_robust.mil_nce(
      S, jnp.array(mask(len(S)), bool), variant=variant
    ),
    lambda S, copies=copies, mask=mask: mil_nce_loops(S, mask(len(S)), copies),
  )
  for variant, copies in (("paper", 1), ("released", 2))
  for mask in (np.eye, groups)
}
by_name = pytest.mark.parametrize("name", CASES)
# Every test uses these sizes, so that each loss is compiled once for each.
SIZES = (1, 2, 7)
LOSS_AND_GRAD = {
  name: jax.jit(
    lambda S, function=function: (
      function(S),
      jax.grad(lambda S: function(S).sum())(S),
    )
  )
  for name, (function, _) in CASES.items()
}


@by_name
def test_equals_plain_loops_in_float64(rng, name):
  _, reference = CASES[name]
  for n, scale in itertools.product(SIZES, (1.0, 14.3, 100.0)):
    S = similarities(rng, n, scale)
    losses, _ = LOSS_AND_GRAD[name](jnp.float32(S))
    assert losses.shape == (n,) and losses.dtype == jnp.float32
    # A float32 near 100 is exact to 4e-6, so its exp is to a factor of 1e-5.
    np.testing.assert_allclose(
      losses, reference(S), rtol=3e-5, atol=2e-5, err_msg=f"{n=}, {scale=}"
    )


@by_name
def test_gradients_equal_finite_differences_in_float64(rng, name):
  n, h = 7, 1e-6
  S = similarities(rng, n, 5.0)
  _, reference = CASES[name]
  if name in ("albef", "norton"):  # the target is a constant
    target_of = {"albef": momentum_of, "norton": lambda S: S}[name](S)
    reference = functools.partial(
      {"albef": albef_fixed, "norton": norton_fixed}[name], target_of
    )
  _, grad = LOSS_AND_GRAD[name](jnp.float32(S))
  expected = np.zeros((n, n))
  for i in range(n):
    for j in range(n):
      up, down = S.copy(), S.copy()
      up[i, j] += h
      down[i, j] -= h
      expected[i, j] = np.mean(reference(up)) - np.mean(reference(down))
  np.testing.assert_allclose(grad / n, expected / (2 * h), rtol=1e-3, atol=1e-5)


def albef_fixed(M, S):
  return albef_loops(S, M, 0.4)


def norton_fixed(S_target, S):
  """The plan of S_target, whatever S: its columns once more, as in norton."""
  n = len(S)
  Q = sinkhorn_loops(S_target, 5)
  losses = []
  for i in range(n):
    total = 0.0
    for row, plan in ((S[i], Q[i]), (S[:, i], Q[:, i] / sum(Q[:, i]))):
      target = [0.3 * plan[j] + 0.7 * (i == j) for j in range(n)]
      total += 0.5 * cross_entropy(target, row)
    losses.append(total)
  return losses


@by_name
@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(data=st.data(), scale=st.floats(1, 100, width=32))
def test_loss_and_gradient_are_finite(name, data, scale):
  n = data.draw(st.sampled_from(SIZES))
  cosine = data.draw(
    hypothesis.extra.numpy.arrays(
      np.float32, (n, n), elements=st.floats(-1, 1, width=32)
    )
  )
  loss, grad = LOSS_AND_GRAD[name](scale * cosine)
  assert np.isfinite(loss).all() and np.isfinite(grad).all()
  if not name.startswith("rince"):  # which has no sign
    assert (loss >= -1e-6).all()  # rounding


@by_name
def test_finite_where_all_embeddings_are_the_same(name):
  for n, scale, sign in itertools.product(SIZES, (1.0, 100.0), (1, -1)):
    loss, grad = LOSS_AND_GRAD[name](np.full((n, n), sign * scale, np.float32))
    assert np.isfinite(loss).all() and np.isfinite(grad).all(), (n, scale, sign)
    if not name.endswith("groups") or n < 4:  # else they differ in size
      np.testing.assert_allclose(
        loss, np.full(n, loss[0]), rtol=1e-6, err_msg=f"{n=} {scale=} {sign=}"
      )


@by_name
def test_transposed_batches_give_the_same(rng, name):
  S = similarities(rng, 7, 5.0).astype(np.float32)
  if name == "albef":
    M = similarities(rng, 7, 5.0).astype(np.float32)
    albef = jax.jit(functools.partial(noise_robust.albef, alpha=0.4))
    losses, transposed = albef(S, M), albef(S.T, M.T)
  elif name == "norton":  # once the plan has converged
    norton = functools.partial(noise_robust.norton, beta=0.3, iterations=500)
    losses, transposed = map(jax.jit(norton), (S, S.T))
  else:
    losses, transposed = (LOSS_AND_GRAD[name](x)[0] for x in (S, S.T))
  np.testing.assert_allclose(losses, transposed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  "limit, tolerance",
  [
    (functools.partial(noise_robust.gce, q=1e-7), 1e-5),
    (functools.partial(noise_robust.mixture, pi=1.0), 1e-6),
    (lambda S: noise_robust.albef(S, momentum_of(S), alpha=0.0), 1e-6),
    (functools.partial(noise_robust.norton, beta=0.0, iterations=3), 1e-6),
    (functools.partial(noise_robust.rince, q=1e-7, lam=1.0), 1e-4),
  ],
  ids=["gce", "mixture", "albef", "norton", "rince"],
)
def test_the_limit_is_infonce(rng, limit, tolerance):
  both = jax.jit(lambda S: (limit(S), pair_losses(S)))
  for scale in (1.0, 14.3, 100.0):
    losses, infonce = both(jnp.float32(similarities(rng, 6, scale)))
    np.testing.assert_allclose(
      losses, infonce, rtol=tolerance, atol=1e-5, err_msg=f"{scale=}"
    )


def test_rince_tends_to_infonce_plus_log_lam(rng):
  S = jnp.float32(similarities(rng, 6, 5.0))
  losses = jax.jit(functools.partial(noise_robust.rince, q=1e-6, lam=0.025))(S)
  np.testing.assert_allclose(
    losses, pair_losses(S) + math.log(0.025), rtol=1e-4
  )


def test_rince_at_one_is_the_symmetric_loss(rng):
  n, lam = 5, 0.2
  S = similarities(rng, n, 3.0)
  expected = []
  for i in range(n):
    others = [(S[i][j], S[j][i]) for j in range(n) if j != i]
    negatives = 0.5 * sum(math.exp(a) + math.exp(b) for a, b in others)
    expected.append(-(1 - lam) * math.exp(S[i][i]) + lam * negatives)
  losses = noise_robust.rince(jnp.float32(S), q=1.0, lam=lam)
  np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)


def test_gce_is_bounded_where_infonce_is_not():
  S = jnp.float32([[-50.0, 50], [50, -50]])
  assert pair_losses(S).min() > 99
  np.testing.assert_allclose(noise_robust.gce(S, q=0.5), 2.0, rtol=1e-6)


@pytest.mark.parametrize("pi", [0.2, 0.7, 1.0])
def test_mixture_gradient_is_the_responsibility_times_infonces(rng, pi):
  n = 6
  S = similarities(rng, n, 5.0)
  mixture = functools.partial(noise_robust.mixture, pi=pi)
  grad = jax.jit(jax.jacobian(mixture))(jnp.float32(S))  # [n, n, n]
  expected = np.zeros((n, n, n))
  for i in range(n):
    for j in range(n):
      for row, place in ((S[i], (i, i, j)), (S[:, i], (i, j, i))):
        p = softmax(row)
        responsibility = pi * p[i] / (pi * p[i] + (1 - pi) / n)
        infonce = p[j] - (i == j)  # d(-log p_i) / d S_ij
        expected[place] += 0.5 * responsibility * infonce
  np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)


sinkhorn = jax.jit(noise_robust.sinkhorn, static_argnums=1)


def test_sinkhorn_is_doubly_stochastic(rng):
  for scale, iterations in ((1.0, 50), (10.0, 2000)):
    S = jnp.float32(similarities(rng, 7, scale))
    plan = np.exp(sinkhorn(S, iterations))
    np.testing.assert_allclose(plan.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(axis=0), 1.0, rtol=1e-4)
  unconverged = np.exp(sinkhorn(S, 0))
  assert abs(unconverged.sum(axis=0) - 1).max() > 0.1
  np.testing.assert_allclose(unconverged, jax.nn.softmax(S, axis=1), rtol=1e-6)


@pytest.mark.parametrize("iterations", [0, 1, 50])
def test_sinkhorn_equals_plain_loops_in_float64(rng, iterations):
  for n in SIZES:
    S = similarities(rng, n, 14.3)
    plan = np.exp(sinkhorn(jnp.float32(S), iterations))
    np.testing.assert_allclose(
      plan,
      sinkhorn_loops(S, iterations),
      rtol=1e-4,
      atol=1e-6,
      err_msg=f"{n=}",
    )


@pytest.mark.parametrize("name", ["albef", "norton"])
def test_targets_sum_to_one(rng, name):
  """Only then is the cross entropy to a uniform p the log of n, and only then
  does a constant added to S change nothing."""
  S = jnp.float32(similarities(rng, 7, 5.0))
  uniform = jnp.zeros_like(S)  # every log p is -log n
  loss = {
    "albef": lambda: noise_robust.albef(uniform, S, alpha=0.4),
    "norton": lambda: noise_robust.norton(uniform, beta=0.4, iterations=3),
  }[name]
  np.testing.assert_allclose(jax.jit(loss)(), math.log(7), rtol=1e-6)
  _, grad = LOSS_AND_GRAD[name](S)
  np.testing.assert_allclose(grad.sum(), 0.0, atol=1e-5)


def test_the_momentum_model_takes_no_gradient_and_matters(rng):
  S, M = (jnp.float32(similarities(rng, 5, 5.0)) for _ in range(2))

  @jax.jit
  def loss_and_grads(S, M):
    return jax.value_and_grad(
      lambda S, M: noise_robust.albef(S, M, alpha=0.4).sum(), argnums=(0, 1)
    )(S, M)

  loss, (to_S, to_M) = loss_and_grads(S, M)
  assert np.any(to_S) and not np.any(to_M)
  assert abs(loss - loss_and_grads(S, -M)[0]) > 1e-2


def test_siglip_mean_is_the_papers_double_sum(rng):
  n = 7
  S = similarities(rng, n, 10.0)
  total = 0.0
  for i in range(n):
    for j in range(n):
      y = 1 if i == j else -1
      total += math.log(1 / (1 + math.exp(-y * S[i][j])))
  mean = noise_robust.siglip(jnp.float32(S)).mean()
  np.testing.assert_allclose(mean, -total / n, rtol=1e-5)


@pytest.mark.parametrize(
  "variant, floor", [("paper", 0.0), ("released", math.log(2))]
)
@pytest.mark.parametrize("mask", [np.eye, groups])
def test_mil_nce_floor(variant, floor, mask):
  perfect = np.where(np.array(mask(7), bool), 100, -100).astype(np.float32)
  losses, _ = LOSS_AND_GRAD[f"mil_nce_{variant}_{mask.__name__}"](perfect)
  np.testing.assert_allclose(losses, floor, rtol=1e-5, atol=1e-5)


def test_mil_nce_does_not_push_a_clips_own_texts_away(rng):
  positives = groups(7)
  S = jnp.float32(similarities(rng, 7, 3.0))
  for variant in noise_robust.MIL_NCE_VARIANTS:
    _, grad = LOSS_AND_GRAD[f"mil_nce_{variant}_groups"](S)
    assert (np.asarray(grad)[positives] < 0).all()
    assert (np.asarray(grad)[~positives] > 0).all()


def test_unknown_variants_are_an_error():
  with pytest.raises(ValueError, match=r"'both'.*\['paper', 'released'\]"):
    noise_robust.mil_nce(jnp.eye(2), jnp.eye(2, dtype=bool), variant="both")


XID = {"delta": 0.5, "kappa": 0.5, "w_min": 0.25}


def test_robust_xid_weights_equal_plain_loops_in_float64(rng):
  cosine = rng.uniform(-1, 1, size=9)
  xid = jax.jit(functools.partial(noise_robust.robust_xid_weights, **XID))
  weights = xid(jnp.float32(cosine), 0.1, 0.4)
  expected = robust_xid_loops(cosine, 0.1, 0.4, **XID)
  np.testing.assert_allclose(weights, expected, rtol=1e-5)
  at_threshold = xid(jnp.full(9, 0.1 + 0.5 * 0.4), 0.1, 0.4)
  np.testing.assert_allclose(at_threshold, 0.25 + 0.75 / 2, rtol=1e-5)


def test_robust_xid_weights_are_finite_without_spread_and_take_no_gradient():
  cosine = jnp.float32([-1, 0.2, 1])
  xid = noise_robust.robust_xid_weights
  weights = jax.jit(functools.partial(xid, delta=0.0, kappa=0.5, w_min=0.25))(
    cosine, 0.2, 0.0
  )
  np.testing.assert_allclose(weights, [0.25, 0.625, 1.0], rtol=1e-5)
  grads = jax.jit(jax.grad(lambda *x: xid(*x, **XID).sum(), argnums=(0, 1, 2)))(
    cosine, jnp.float32(0.2), jnp.float32(0.3)
  )
  assert all(not np.any(grad) for grad in grads)


EVERYTHING_ELSE = {
  "infonce": pair_losses,
  "robust_xid": lambda S: noise_robust.robust_xid_weights(
    jnp.diagonal(S), *mean_and_std_of(jnp.diagonal(S)), **XID
  ),
}


def mean_and_std_of(values):
  seen = moments.update_moments(moments.init_moments(), values, 0.9)
  return moments.mean_and_std(seen)


def test_eight_devices_equal_one(rng):
  functions = {name: function for name, (function, _) in CASES.items()}
  functions |= EVERYTHING_ELSE

  def losses(video, text):
    S = similarity(video, text, 10.0)
    return {
      name: (
        function(S),
        jax.grad(lambda S, function=function: function(S).mean())(S),
      )
      for name, function in functions.items()
    }

  x = jnp.float32(rng.normal(size=(2, 32, 16)))
  video, text = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  plain = jax.jit(losses)(video, text)
  rows = NamedSharding(make_mesh(jax.devices(), 1), P("data"))
  spread = [jax.device_put(x, rows) for x in (video, text)]
  assert len(spread[0].sharding.device_set) == 8
  sharded = jax.jit(losses)(*spread)
  for name in functions:
    for one, eight in zip(plain[name], sharded[name], strict=True):
      np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def golden():
  """What other packages made of one batch: make_goldens.py."""
  return json.loads(GOLDENS.read_text())


@pytest.fixture
def golden_S(golden):
  video, text = (jnp.float32(golden[name]) for name in ("video", "text"))
  return similarity(video, text, golden["logit_scale"])


def test_infonce_equals_open_clips(golden, golden_S):
  np.testing.assert_allclose(
    pair_losses(golden_S).mean(), golden["open_clip_clip"], rtol=1e-5
  )


def test_siglip_equals_open_clips(golden, golden_S):
  losses = noise_robust.siglip(golden_S + golden["logit_bias"])
  np.testing.assert_allclose(
    losses.mean(), golden["open_clip_siglip"], rtol=1e-5
  )


def test_gce_equals_keras(golden, golden_S):
  assert golden["keras_gce"]
  for q, expected in golden["keras_gce"].items():
    loss = noise_robust.gce(golden_S, q=float(q)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_sinkhorn_equals_pots(golden, golden_S):
  plan = jnp.exp(noise_robust.sinkhorn(golden_S, 2000))
  np.testing.assert_allclose(plan, golden["pot_sinkhorn"], rtol=1e-3, atol=1e-6)
