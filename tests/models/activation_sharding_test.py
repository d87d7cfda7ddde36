"""A mesh axis `model` splits the products of a block, and changes no value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calince_jax.models import transformer
from calince_jax.runtime import hlo, sharding

B, L, WIDTH, HEADS = 8, 6, 32, 4
STACK = transformer.Transformer(depth=1, num_heads=HEADS, scan=False)
RULES = [(".*", "model")]


def loss_and_grad(params, x):
  def loss(params, x):
    y = STACK.apply({"params": params}, x)
    return (y * jnp.arange(WIDTH)).sum()

  return jax.value_and_grad(loss, argnums=(0, 1))(params, x)


@pytest.fixture(scope="module")
def inputs():
  x = jnp.linspace(-1, 1, B * L * WIDTH).reshape(B, L, WIDTH) ** 3
  return jax.jit(STACK.init)(jax.random.key(0), x)["params"], x


@pytest.fixture(scope="module")
def split(inputs):
  """The program for 4 x 2 devices, and where its arguments lie."""
  mesh = sharding.make_mesh(jax.devices(), model_parallel=2)

  def function(params, x):
    with sharding.context_of(mesh):
      return loss_and_grad(params, x)

  layout = sharding.shardings(inputs[0], mesh, RULES, smallest=64)
  places = (layout, sharding.batch_sharding(mesh))
  whole = sharding.replicated(mesh)
  compiled = (
    jax.jit(function, in_shardings=places, out_shardings=(whole, places))
    .lower(*inputs)
    .compile()
  )
  return compiled, places


def test_values_and_gradients_are_those_of_one_device(inputs, split):
  compiled, places = split
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
    compiled(*jax.device_put(inputs, places)),
    jax.jit(loss_and_grad)(*inputs),
  )


def test_a_device_stores_the_part_that_it_multiplies_with(split):
  """Heads of q, k, v and of the output; hidden units of the MLP."""
  block = split[1][0]["block_0"]
  attention, mlp = block["attention"], block["mlp"]
  for name in ("query", "key", "value"):
    assert attention[name]["kernel"].spec[1] == "model"
  assert attention["out"]["kernel"].spec[0] == "model"
  assert mlp["in"]["kernel"].spec[1] == "model"
  assert mlp["out"]["kernel"].spec[0] == "model"


def test_the_compiled_products_are_split_and_their_results_summed(split):
  text = split[0].as_text()
  local, heads, hidden = B // 4, HEADS // 2, 4 * WIDTH // 2
  # One sum of activations each for attention and for the MLP, over 2 devices.
  sums = [
    shape
    for one in hlo.read_program(text).collectives
    if one.kind == "all-reduce" and one.group == 2
    for _, shape in one.shapes
  ]
  rows = local * L
  assert [s for s in sums if s in ((local, L, WIDTH), (rows, WIDTH))], sums
  # No array has a local batch and all of the hidden units or heads.
  assert f"[{local},{L},{hidden}]" in text or f"[{rows},{hidden}]" in text
  for whole in (
    f"[{local},{L},{2 * hidden}]",
    f"[{rows},{2 * hidden}]",
    f"[{local},{L},{2 * heads},{WIDTH // HEADS}]",
  ):
    assert whole not in text
