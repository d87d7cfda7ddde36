"""What the compiled train step communicates, not only what comes out of it."""

import jax
import numpy as np
import pytest
from conftest import tiny_config

from calince_jax.data.tokenizer import Vocabulary
from calince_jax.models.cali_nce import dummy_batch
from calince_jax.runtime import chips, hlo, sharding
from calince_jax.training import ahead_of_time, setup

LOCAL = 7  # pairs on each device: no width of the model is a multiple


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
  """{devices: (program, temporary bytes)} of the same local batch."""
  made = {}
  for devices in (2, 8):
    changes = {"batch_size": LOCAL * devices}
    config = tiny_config(tmp_path_factory.mktemp("none"), changes=changes)
    config = config.to_dict()
    mesh = setup.open_mesh(config, jax.devices()[:devices])
    training = setup.compile_training(
      config, mesh, vocabulary=Vocabulary(2000), num_pairs=1000
    )
    batch = dummy_batch(training.model.config, config["batch_size"])
    compiled = training.step.lower(
      training.abstract, jax.eval_shape(lambda b=batch: b)
    ).compile()
    made[devices] = (
      hlo.read_program(compiled.as_text()),
      compiled.memory_analysis().temp_size_in_bytes,
    )
  return made


def encoder_collectives(program):
  """Those of the towers and the predictive head, not of the losses."""
  return [
    one
    for one in program.collectives
    if "video_encoder" in one.where
    or "text_encoder" in one.where
    or "predictive_decoder" in one.where
  ]


def test_no_activation_of_the_global_batch_is_communicated(programs):
  """With it the compiler has read sharded weights as tensor parallelism."""
  for devices, (program, _) in programs.items():
    ours = encoder_collectives(program)
    assert ours, "the names of the model are gone from the program"
    for one in ours:
      for dtype, shape in one.shapes:
        assert not _of_the_batch(shape, devices), (one.kind, dtype, shape, one)


def _of_the_batch(shape, devices):
  """Whether an array is [global batch, or that times tokens, ..., width]."""
  whole, tokens = LOCAL * devices, (1, 2, 4, 12)
  return len(shape) >= 3 and any(shape[0] == whole * n for n in tokens)


def test_communication_does_not_grow_with_the_devices(programs):
  """The weights' bytes; embeddings of the batch are small beside them."""
  totals = {
    devices: sum(one.result_bytes for one in encoder_collectives(program))
    for devices, (program, _) in programs.items()
  }
  assert totals[8] <= 1.1 * totals[2]


def test_memory_does_not_grow_with_the_devices(programs):
  assert programs[8][1] <= 1.1 * programs[2][1]


def test_two_slices_equal_one_and_hold_all_weights(tiny_dataset):
  """A mesh of two groups: the numbers of one group, weights in each."""
  config = tiny_config(tiny_dataset, "infonce").to_dict()
  states = []
  for slices in (1, 2):
    config["sharding"]["slices"] = slices
    mesh = setup.open_mesh(config, jax.devices())
    assert ("slice" in mesh.axis_names) == (slices == 2)
    training = setup.compile_training(
      config, mesh, vocabulary=Vocabulary(80), num_pairs=104
    )
    batch = make_batch(training.model.config, config["batch_size"])
    batch = sharding.to_global(batch, mesh)
    state, metrics = training.step(training.start(0), batch)
    states.append((jax.device_get(state.params), float(metrics["loss"])))
    kernel = training.layout.params["video_encoder"]["patch_embedding"]
    ways = kernel["kernel"].shard_shape((1536, 32))[0]
    assert ways == 1536 // (8 // slices)
  np.testing.assert_allclose(states[0][1], states[1][1], rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4),
    states[0][0],
    states[1][0],
  )


def make_batch(config, size):
  rng = np.random.default_rng(0)
  batch = jax.device_get(dummy_batch(config, size))
  batch["video"] = rng.integers(0, 256, batch["video"].shape, np.uint8)
  batch["text_ids"] = rng.integers(5, 80, batch["text_ids"].shape, np.int32)
  return batch


def test_a_plan_adds_up(tiny_dataset):
  changes = {"model.remat": "full"}
  config = tiny_config(tiny_dataset, "infonce", changes).to_dict()
  made = ahead_of_time.plan_step(
    config, jax.devices(), vocab_size=80, num_pairs=104
  )
  assert made.fits and made.devices == 8 and made.slices == 1
  params = made.state["parameters"]
  # Sharded over the devices, but for what is small.
  assert params < 4 * made.parameters < 8 * params
  assert made.state["optimizer"] >= 2 * params
  assert made.input > 16 * 4 * 32 * 32 * 3 / 8
  assert 0 < made.model_flops < made.flops  # blocks are computed again
  seconds = ahead_of_time.seconds(made, chips.CHIPS["v5e"])
  assert seconds["products"] == made.flops / 8 / 197e12
  assert seconds["memory"] > 0 and seconds["network"] > 0
