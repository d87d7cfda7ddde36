"""The kernel for GPUs, interpreted: the same numbers as XLA's tiles."""

import ast
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from calince_jax.losses import nce_kernel
from calince_jax.losses.calibrated_nce import calibrated_nce
from calince_jax.losses.tiled_nce import (
  tiled_calibrated_nce,
  tiled_pair_losses,
  tiled_siglip,
)
from calince_jax.runtime.sharding import make_mesh

PLAIN = {"tile": 64}
KERNEL = {"tile": 64, "kernel": nce_kernel}


def pairs(rng, n, d=64):
  x = rng.normal(size=(2, n, d))
  x[1] += x[0]
  return jnp.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", ["nce", "siglip"])
def test_equals_the_tiles_of_xla(rng, loss, products):
  video, text = pairs(rng, 128)
  ids = jnp.int32(rng.integers(0, 100, 128))  # some stand twice

  def mean(options, video, text, scale, bias):
    options = options | {"matmul_dtype": products, "pair_ids": ids}
    if loss == "nce":
      return tiled_pair_losses(video, text, scale, **options).mean()
    return tiled_siglip(video, text, scale, bias, **options).mean()

  arguments = video, text, jnp.float32(9.0), jnp.float32(-4.0)
  (value, grads), (expected, expected_grads) = (
    jax.jit(
      jax.value_and_grad(
        lambda *x, options=options: mean(options, *x), argnums=(0, 1, 2, 3)
      )
    )(*arguments)
    for options in (KERNEL, PLAIN)
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  exact = products == "float32"
  for grad, other in zip(grads, expected_grads, strict=True):
    # dL/dS is rounded to bfloat16 before its products, here and there.
    rounding = (1e-6 if exact else 1e-2) * (np.abs(other).max() + 1e-3)
    np.testing.assert_allclose(grad, other, rtol=2e-5, atol=rounding)


def test_on_eight_devices_equals_the_dense_loss(rng):
  video, text = pairs(rng, 512)
  w = jnp.float32(rng.random(512))
  mesh = make_mesh(jax.devices(), 1)
  (value, grad), (expected, dense) = (
    jax.jit(jax.value_and_grad(loss))(video, text, w, 14.3)
    for loss in (
      lambda *x: tiled_calibrated_nce(*x, mesh=mesh, **KERNEL),
      calibrated_nce,
    )
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(grad, dense, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_lowers_to_triton_for_a_gpu(dtype):
  def loss(video, text):
    return tiled_calibrated_nce(video, text, jnp.ones(128), 9.0, **KERNEL)

  x = jax.ShapeDtypeStruct((128, 512), dtype)
  gradient = jax.jit(jax.grad(loss))
  # Since JAX 0.11 the lowering asks which GPU it is for.
  gpu = AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
  with jax.sharding.use_abstract_mesh(
    AbstractMesh((), (), abstract_device=gpu)
  ):
    text = gradient.trace(x, x).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("xla.gpu.triton") == 2  # forward and backward
  assert "triton" not in gradient.lower(x, x).as_text()


@pytest.mark.parametrize(
  "n, d, tile, message",
  [
    (96, 64, 64, "do not divide"),
    (96, 64, 96, "multiple of 64"),
    (64, 32, 64, "64 numbers"),
  ],
)
def test_sizes_that_it_cannot_cut_are_an_error(n, d, tile, message):
  with pytest.raises(ValueError, match=message):
    tiled_pair_losses(
      jnp.ones((n, d)), jnp.ones((n, d)), 1.0, tile=tile, kernel=nce_kernel
    )


def test_it_imports_nothing_but_jax():
  tree = ast.parse(Path(nce_kernel.__file__).read_text())
  imported = {
    (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
    for node in ast.walk(tree)
    if isinstance(node, ast.Import | ast.ImportFrom)
  }
  roots = {name.split(".")[0] for name in imported}
  assert roots - set(sys.stdlib_module_names) == {"jax"}
