"""`plan` says what a step needs; a wrong topology says what is known."""

import pytest
from conftest import start, wait
from conftest import tiny_flags as flags_of

from calince_jax import plan
from calince_jax.errors import UserError
from calince_jax.runtime import topologies
from calince_jax.training.ahead_of_time import Plan


def test_the_command_plans_for_simulated_devices(tmp_path):
  process = start(
    "plan",
    *flags_of(tmp_path),
    "--topology=cpu:4",
    "--vocab_size=80",
    "--num_pairs=100",
    devices=4,
  )
  out, err = wait(process, 300)
  assert process.returncode == 0, err
  assert "on 4 devices of cpu:4, 1 slice(s), batch 16 (4 on each)" in out
  for words in ("fits: ", "optimizer", "replicated: ", "TFLOP a clip"):
    assert words in out
  assert "sent by each device in a step: " in out


@pytest.mark.parametrize(
  "name", ["v9:2x2", "v5e", "cpu:0", "H100:8", "gpu:16xH100", "v5e:a"]
)
def test_an_unknown_topology_is_named(name):
  with pytest.raises(UserError, match=f"--topology={name}.*v5e:16x16"):
    topologies.devices(name)


MADE = Plan(
  batch_size=4096,
  devices=256,
  slices=1,
  parameters=10**9,
  state={"parameters": 2**30, "optimizer": 2**31},
  replicated=[("video/kernel", 2**23)],
  input=2**20,
  temporaries=2**34,
  fits=True,
  flops=2 * 10**16,
  model_flops=10**16,
  sent={"all-gather": 10**9},
  sent_between_slices=0,
  memory_traffic=10**11,
)


def test_what_does_not_fit_is_said_with_advice():
  lines = plan.describe(MADE, "v5e:16x16")
  text = "\n".join(lines)
  assert "DOES NOT FIT: 19.00 GiB of 16 on each device" in text
  assert "video/kernel 8.0 MiB" in text
  assert "config.sharding.slices=2" in text
  assert "fits: 19.00 GiB of 95" in "\n".join(plan.describe(MADE, "v5p:4x4x8"))


def test_the_roofline_is_the_slowest_limit():
  """2e16 / 256 / 197e12 = 0.397 s of products; half of them useful: 50 %."""
  (line,) = (x for x in plan.describe(MADE, "v5e:16x16") if "at least" in x)
  assert "396.6 ms by products, 122.1 ms by memory, 5.0 ms by network" in line
  assert "MFU at most 50%" in line


def test_a_plan_for_gpus_says_that_it_is_an_estimate():
  text = "\n".join(plan.describe(MADE, "gpu:8xH100"))
  assert "an estimate: " in text and "of 75 on each device" in text
  assert "an estimate: " not in "\n".join(plan.describe(MADE, "v5e:16x16"))
  assert len(topologies.devices("gpu:8xH100")) == 8
