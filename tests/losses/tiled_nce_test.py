"""The tiled loss equals the dense one, value and gradients, for any tiling."""

import ast
import functools
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from calince_jax.losses import contrastive, noise_robust, tiled_nce
from calince_jax.losses.calibrated_nce import (
  calibrated_nce,
  mask_duplicate_pairs,
  similarity,
)
from calince_jax.losses.tiled_nce import (
  Tiling,
  similarity_sums,
  tiled_calibrated_nce,
  tiled_pair_losses,
  tiled_siglip,
)
from calince_jax.runtime.sharding import make_mesh

SAVE_ALL = 2**40  # bytes: all tiles of S are saved for the backward pass
MESHES = {
  1: lambda: None,
  2: lambda: some_devices(2),
  8: lambda: make_mesh(jax.devices(), 1),
}


def some_devices(count):
  return jax.make_mesh(
    (count,),
    ("data",),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:count],
  )


def pairs(rng, n, d, aligned=0.0):
  """Unit vectors [2, n, d]; video i and text i are the closer, the more
  `aligned`."""
  x = rng.normal(size=(2, n, d))
  x[1] += aligned * x[0]
  return jnp.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))


def value_and_grads(loss):
  """Jitted: (video, text, w, scale) -> loss, (d_video, d_text, d_scale)."""
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 3)))


dense_nce = value_and_grads(calibrated_nce)


def assert_same(ours, dense, scale=14.3):
  """To 1e-5 relative, and to what float32 knows of S, which is up to scale."""
  (loss, grads), (expected, dense_grads) = ours, dense
  rounding = 4e-7 * max(scale, 1.0)
  np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=rounding)
  for grad, other, size in zip(
    grads, dense_grads, (scale, scale, 1.0), strict=True
  ):
    np.testing.assert_allclose(grad, other, rtol=1e-5, atol=rounding * size)


@pytest.mark.parametrize(
  "n, d, tile",
  [(1, 4, 1), (3, 1, 2), (9, 16, 4), (8, 24, 4), (7, 8, 100)],
)
@pytest.mark.parametrize("devices", MESHES)
def test_equals_the_dense_loss(devices, n, d, tile):
  N, mesh = n * devices, MESHES[devices]()
  keep = SAVE_ALL if (n + devices) % 2 else 0
  ours = value_and_grads(
    functools.partial(
      tiled_calibrated_nce, mesh=mesh, tile=tile, max_saved_bytes=keep
    )
  )

  @hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
  @hypothesis.given(
    scale=st.floats(0.1, 100.0),
    aligned=st.floats(0.0, 3.0),
    trusted=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**16),
  )
  def holds(scale, aligned, trusted, seed):
    rng = np.random.default_rng(seed)
    video, text = pairs(rng, N, d, aligned)
    w = jnp.float32(rng.random(N) * (rng.random(N) < trusted))  # with zeros
    x = video, text, w, jnp.float32(scale)
    assert_same(ours(*x), dense_nce(*x), scale)

  holds()


def test_equals_plain_loops_in_float64_where_the_loss_is_tiny(rng):
  video, _ = pairs(rng, 6, 32)
  scale = 14.0  # each text is its video: l_i of about 1e-5
  v = np.float64(video)
  S = scale * v @ v.T
  expected = [
    0.5
    * sum(
      np.log1p(sum(np.exp(x[j] - x[i]) for j in range(6) if j != i))
      for x in (S[i], S[:, i])
    )
    for i in range(6)
  ]
  losses = functools.partial(tiled_pair_losses, tile=4)
  l = jax.jit(losses)(video, video, scale)
  assert max(expected) < 1e-2
  np.testing.assert_allclose(l, expected, rtol=1e-4)


@pytest.mark.parametrize("model_parallel", [1, 2])
def test_eight_devices_of_any_mesh_equal_one(rng, model_parallel):
  video, text = pairs(rng, 32, 16)
  w = jnp.float32(rng.random(32))
  mesh = make_mesh(jax.devices(), model_parallel)
  spread = NamedSharding(mesh, P("data"))
  on_mesh = [jax.device_put(x, spread) for x in (video, text, w)]
  dense = dense_nce(video, text, w, 14.3)
  for axis in ("data", mesh.axis_names):

    def ours(*x, axis=axis):
      return tiled_calibrated_nce(*x, mesh=mesh, axis=axis, tile=3)

    found = value_and_grads(ours)(*on_mesh, 14.3)
    assert_same(found, dense)
    assert not found[1][0].sharding.is_fully_replicated


def test_a_mesh_of_explicit_axes_equals_one_device(rng):
  video, text = pairs(rng, 32, 16)
  w = jnp.float32(rng.random(32))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
  ours = functools.partial(tiled_calibrated_nce, mesh=mesh, tile=3)
  spread = NamedSharding(mesh, P("data"))
  on_mesh = [jax.device_put(x, spread) for x in (video, text, w)]
  dense = dense_nce(video, text, w, 14.3)
  for arrays in ((video, text, w), on_mesh):
    assert_same(value_and_grads(ours)(*arrays, 14.3), dense)


@pytest.mark.parametrize("mesh", [None, 8])
def test_a_duplicate_pair_is_no_negative_of_itself(rng, mesh):
  video, text = pairs(rng, 16, 8)
  ids = jnp.int32([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 3, 3, 8, 9])

  @jax.jit
  def dense(video):
    S = similarity(video, text, 10.0)
    return contrastive.pair_losses(mask_duplicate_pairs(S, ids))

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def ours(video, ids):
    l = tiled_pair_losses(
      video, text, 10.0, pair_ids=ids, mesh=MESHES[mesh or 1](), tile=3
    )
    return l.sum(), l

  (_, l), _ = ours(video, ids)
  np.testing.assert_allclose(l, dense(video), rtol=1e-5)
  (_, plain), _ = ours(video, jnp.arange(16))
  different = np.asarray(l != plain)
  assert different[:4].all() and not different[[4, 5, 6, 7, 14, 15]].any()
  (_, none_left), grads = ours(video, jnp.zeros(16, jnp.int32))
  np.testing.assert_array_equal(none_left, 0.0)
  np.testing.assert_array_equal(grads, 0.0)


@pytest.mark.parametrize("keep", [0, SAVE_ALL])
@pytest.mark.parametrize("devices", MESHES)
def test_siglip_equals_the_dense_one(rng, devices, keep):
  video, text = pairs(rng, 16, 8, 1.0)

  def dense(video, text, scale, bias):
    S = similarity(video, text, scale) + bias
    return noise_robust.siglip(S).mean()

  def ours(video, text, scale, bias):
    options = {"mesh": MESHES[devices](), "tile": 3, "max_saved_bytes": keep}
    return tiled_siglip(video, text, scale, bias, **options).mean()

  arguments = video, text, jnp.float32(10.0), jnp.float32(-5.0)
  found, expected = (
    jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3)))(*arguments)
    for f in (ours, dense)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
    found,
    expected,
  )


@pytest.mark.parametrize("mask_duplicates", [False, True])
@pytest.mark.parametrize("kind", contrastive.LOSSES_FROM_SUMS)
def test_every_loss_from_sums_is_the_same_in_tiles(rng, kind, mask_duplicates):
  video, text = pairs(rng, 16, 8, 1.0)
  ids = jnp.int32(rng.integers(0, 12, 16))

  def mean(tiling, video, text, scale, bias):
    outputs = {
      "video": video,
      "text": text,
      "logit_scale": scale,
      "logit_bias": bias,
    }
    losses, metrics = contrastive.pair_loss(
      kind,
      outputs,
      ids,
      blend=1.0,
      mask_duplicates=mask_duplicates,
      tiling=tiling,
    )
    return losses.mean(), metrics

  arguments = video, text, jnp.float32(8.0), jnp.float32(-3.0)
  loss_and_grads = jax.jit(
    jax.value_and_grad(mean, argnums=(1, 2, 3, 4), has_aux=True),
    static_argnums=0,
  )
  (dense, metrics), grads = loss_and_grads(None, *arguments)
  (loss, ours), our_grads = loss_and_grads(
    Tiling(mesh=make_mesh(jax.devices(), 1), tile=1), *arguments
  )
  np.testing.assert_allclose(loss, dense, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    our_grads,
    grads,
  )
  for name in ours:
    np.testing.assert_allclose(ours[name], metrics[name], rtol=1e-5)
  assert 0 < ours["in_batch_accuracy"] < 1
  assert ("infonce" in ours) == (kind != "siglip")


def test_memory_does_not_grow_with_the_number_of_devices():
  n, d = 512, 32  # pairs of each device

  def temporary(devices, loss):
    mesh = some_devices(devices)
    rows, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
    function = jax.jit(
      jax.value_and_grad(loss(mesh), argnums=(0, 1)),
      in_shardings=(rows, rows, rows, whole),
      out_shardings=(whole, (rows, rows)),
    )
    N = n * devices
    shapes = [(N, d), (N, d), (N,), ()]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = function.lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  def ours(mesh):
    return lambda *x: tiled_calibrated_nce(
      *x, mesh=mesh, tile=64, max_saved_bytes=0
    )

  two, four, eight = (temporary(devices, ours) for devices in (2, 4, 8))
  assert max(two, four, eight) < 1.1 * min(two, four, eight)
  assert eight < 8 * n * d * 4  # eight arrays of a device's embeddings
  assert temporary(8, lambda mesh: calibrated_nce) > 10 * eight


def test_saved_tiles_are_not_computed_again(rng):
  video, text = pairs(rng, 16, 8)

  def products(keep):
    jaxpr = jax.make_jaxpr(
      jax.grad(
        lambda v: tiled_calibrated_nce(
          v, text, jnp.ones(16), 9.0, max_saved_bytes=keep
        )
      )
    )(video)
    return str(jaxpr).count("dot_general")

  assert (products(0), products(4 * 16 * 16)) == (4, 3)
  assert products(4 * 16 * 16 - 1) == 4  # a byte too little


def test_bfloat16_products_are_near_and_sums_are_float32(rng):
  video, text = pairs(rng, 64, 32)
  w = jnp.float32(rng.random(64))

  def ours(*x):
    return tiled_calibrated_nce(*x, tile=16, matmul_dtype="bfloat16")

  loss, grads = value_and_grads(ours)(video, text, w, 14.3)
  dense, dense_grads = dense_nce(video, text, w, 14.3)
  assert loss.dtype == jnp.float32 and loss != dense
  np.testing.assert_allclose(loss, dense, rtol=1e-2)
  for grad, other in zip(grads, dense_grads, strict=True):
    assert grad.dtype == other.dtype == jnp.float32
    np.testing.assert_allclose(
      grad, other, rtol=0, atol=3e-2 * np.abs(other).max()
    )
  lowered = jax.jit(ours).lower(video, text, w, 14.3).as_text()
  assert "xbf16>) -> tensor" in lowered and "64x64" not in lowered


@pytest.mark.parametrize("n", [1, 8])
def test_finite_at_the_extremes(n):
  ours = value_and_grads(tiled_calibrated_nce)
  video = np.eye(1, 4, dtype=np.float32).repeat(n, axis=0)
  for logit_scale in (0.01, 200.0):
    loss, grads = ours(video, -video, jnp.ones(n), logit_scale)
    np.testing.assert_allclose(loss, np.log(n), atol=1e-4)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_a_nan_in_the_input_gives_a_nan_loss(rng):
  video, text = np.array(pairs(rng, 8, 4))
  video[3, 1] = np.nan
  loss, _ = value_and_grads(tiled_calibrated_nce)(video, text, jnp.ones(8), 9.0)
  assert np.isnan(loss)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"video": jnp.ones((4, 8))}, "must both be"),
    ({"confidence": jnp.ones(3)}, "confidence"),
    ({"pair_ids": jnp.ones(3, jnp.int32)}, "pair_ids"),
    ({"tile": 0}, "tile"),
    ({"matmul_dtype": "int8"}, "bfloat16"),
    ({"axis": "rows", "mesh": make_mesh(jax.devices(), 1)}, "axes"),
    ({"mesh": make_mesh(jax.devices(), 1)}, "8 devices cannot share 6"),
  ],
)
def test_wrong_arguments_are_an_error(change, message):
  arguments = {
    "video": jnp.ones((6, 8)),
    "text": jnp.ones((6, 8)),
    "confidence": jnp.ones(6),
    "logit_scale": 1.0,
  }
  with pytest.raises(ValueError, match=message):
    tiled_calibrated_nce(**arguments | change)
  with pytest.raises(ValueError, match="softplus"):
    similarity_sums(jnp.ones((2, 2)), jnp.ones((2, 2)), 1.0, reduction="max")


def test_it_imports_nothing_but_jax():
  tree = ast.parse(Path(tiled_nce.__file__).read_text())
  imported = {
    (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
    for node in ast.walk(tree)
    if isinstance(node, ast.Import | ast.ImportFrom)
  }
  roots = {name.split(".")[0] for name in imported}
  assert roots - set(sys.stdlib_module_names) == {"jax"}
