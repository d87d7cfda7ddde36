"""Timing the step against PyTorch, with a process that plays its part."""

import json
import sys

import pytest

from benchmarks import step
from calince_jax.errors import UserError
from configs import step_time

PEER = """#!/bin/sh
echo '{"torch": "9.9", "parameters": 1000}'
while read line; do
  echo '{"seconds": 0.5, "cpu": 0.75, "loss": 2.0}'
done
"""


def test_a_peer_takes_a_step_when_it_is_asked(tmp_path):
  python = tmp_path / "python"
  python.write_text(PEER)
  python.chmod(0o755)
  peer = step.Peer(str(python), {"batch": 8}, compiled=True)
  assert (peer.name, peer.parameters) == ("torch 9.9, compiled", 1000)
  script, shape = peer.process.args[1:]
  assert script.endswith("torch_step.py")
  assert json.loads(shape) == {"batch": 8, "compile": True}
  assert peer.step() == peer.step() == {"seconds": 0.5, "cpu": 0.75, "loss": 2}
  peer.process.stdin.close()
  assert peer.process.wait(timeout=60) == 0


def test_an_environment_without_pytorch_is_one_message(capfd):
  with pytest.raises(UserError, match="ended with status 1"):
    step.Peer(sys.executable, {}, compiled=False)
  assert "No module named 'torch'" in capfd.readouterr().err


def test_the_peer_is_told_the_towers_and_refuses_another_step():
  config = step_time.get_config()
  shape = step.peer_shape(config.to_dict(), vocab_size=100)
  assert shape["video"] == {"width": 384, "depth": 12, "num_heads": 6}
  assert shape["text"]["width"] == 192 and shape["tubelet"] == [2, 8]
  config.model.dropout = 0.1
  with pytest.raises(UserError, match=r"config\.model\.dropout=0\.1: .* 0\.0"):
    step.peer_shape(config.to_dict(), vocab_size=100)


def test_the_table_has_ratios_of_turns_and_the_mfu_of_a_known_chip():
  def turns(*seconds):
    return [{"seconds": s, "cpu": 2 * s, "loss": 1.0} for s in seconds]

  facts = {
    "parameters": 3_000_000,
    "operations": 989e12 / 2,
    "devices": 1,
    "device": "NVIDIA H100 80GB HBM3",
    "cores": 16,
    "dtype": "bfloat16",
    "versions": "jax 1.2",
    "memory": "compiled",
  }
  both = {"ours": turns(1.0, 2.0, 1.0), "torch": turns(2.0, 2.0, 0.5)}
  text = "\n".join(step.report(both, 8, facts))
  ours = "| ours | 1,000 | 1,000 | 2,000 | 8.0 | 1.00 (1.00 to 1.00) | 50.0 % |"
  torch = "| torch | 2,000 | 500 | 1,000 | 4.0 | 1.00 (0.50 to 2.00) | 25.0 % |"
  assert ours in text and torch in text and "3 steps each" in text
  text = "\n".join(step.report(both, 8, facts | {"device": "cpu"}))
  assert "MFU" not in text and "0.50 to 2.00) |\n" in text
