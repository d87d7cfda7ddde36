"""What ours is timed against computes the same number and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import contrastive_peers, loss_memory, loss_time


@pytest.mark.parametrize("name", ["ours", *contrastive_peers.PEERS])
def test_every_way_gives_the_same(rng, name):
  mesh = loss_memory.mesh_of(jax.devices())
  x = jnp.float32(rng.normal(size=(2, 32, 16)))
  video, text = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  arguments = video, text, jnp.float32(rng.random(32)), jnp.float32(9.0)
  makers = {"ours": contrastive_peers.ours} | contrastive_peers.PEERS
  found, expected = (
    contrastive_peers.value_and_grad(make(mesh), mesh)(*arguments)
    for make in (makers[name], contrastive_peers.naive)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    found,
    expected,
  )


def test_turns_are_those_that_differ():
  turns = loss_time.jax_turns(1, 16, "float32", 8)
  assert list(turns) == ["ours", "ours, nothing kept", "naive"]
  for turn in turns.values():
    turn()
