"""What cannot fit is refused before it is traced; what fits is not."""

from pathlib import Path

import jax
import pytest
from conftest import tiny_config

from calince_jax.errors import UserError
from calince_jax.runtime import sharding
from calince_jax.training import memory


def config(**changes):
  return tiny_config(Path("none"), changes=changes).to_dict()


@pytest.mark.parametrize(
  "changes",
  [
    {"batch_size": 10**8},
    {"model.video.temporal_depth": 1000, "model.video.size": "L",
     "batch_size": 4096},
    {"batch_size": 8 * 10**5, "similarities.form": "dense"},
  ],
)  # fmt: skip
def test_what_cannot_fit_is_refused_with_what_to_lower(changes, monkeypatch):
  monkeypatch.setattr(memory, "bytes_of_a_device", lambda: 16 * memory.GIB)
  mesh = sharding.make_mesh(jax.devices())
  with pytest.raises(UserError, match=r"needs at least .* lower config.batch"):
    memory.check(config(**changes), mesh)


def test_what_fits_is_let_through_and_chunks_make_room(monkeypatch):
  mesh = sharding.make_mesh(jax.devices())
  memory.check(config(), mesh)
  one, four = (
    memory.least_bytes(config(batch_size=64, grad_cache_chunks=n), mesh)
    for n in (1, 4)
  )
  assert four["blocks"] * 4 == one["blocks"] and four["state"] == one["state"]
  assert 0 < memory.bytes_of_a_device() < 2**50
