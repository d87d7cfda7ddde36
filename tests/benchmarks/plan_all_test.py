"""The grid of plans: what its cases are, and how it goes on."""

import json
import sys

import pytest
from absl import flags

from benchmarks import plan_all
from calince_jax.errors import UserError

CASES = {case.name: case for case in plan_all.cases()}
ROW = {
  "towers": "B",
  "frames": 16,
  "batch": 4096,
  "chunks": 2,
  "topology": "v5e:16x16",
  "slices": 2,
  "parameters": 259_000_000,
  "fits": True,
  "memory": 12 * 2**30,
  "sent": 2.5e9,
  "seconds": {"products": 0.2, "memory": 0.5, "network": 0.1},
  "mfu": 0.31,
}


def test_the_grid_has_every_tower_pod_and_batch():
  assert len(CASES) == 1 + len(plan_all.CONFIGS) + 3 * 2 * 5 * 3
  batches = {case.changes.get("batch_size") for case in CASES.values()}
  assert batches == {None, 8, 4096, 16384, 65536}


@pytest.mark.parametrize(
  ("topology", "count"),
  [("v5e:16x16", 256), ("v5p:4x4x4", 64), ("gpu:8xH100", 8), ("cpu:4", 4)],
)
def test_devices_of_a_topology(topology, count):
  assert plan_all.device_count(topology) == count


def test_chunks_divide_the_clips_of_a_device():
  for case in CASES.values():
    if "grad_cache_chunks" in case.changes:
      devices = case.slices * plan_all.device_count(case.topology)
      here, rest = divmod(case.changes["batch_size"], devices)
      assert rest == 0 and here % case.changes["grad_cache_chunks"] == 0
  name = "L,32 frames,65536,1 x v5p:4x4x4"
  assert CASES[name].changes["grad_cache_chunks"] == 1024 // 8


def test_every_case_is_a_configuration():
  for case in CASES.values():
    assert plan_all.config_of(case).batch_size > 0


def test_the_table_says_what_fits_and_what_bounds_the_step():
  rows = [
    ROW | {"case": "webvid"},
    {k: v for k, v in ROW.items() if k not in ("seconds", "mfu")}
    | {"case": "a", "fits": False, "memory": 20 * 2**30},
  ]
  first, second = plan_all.table(rows).splitlines()[2:]
  assert first == (
    "| B, 16 frames (`webvid`) | 2 x v5e:16x16 | 4,096 (2) | 259 | 12.0 of 16 |"
    " 2.50 | 0.50 s by memory | 8,192 | 31% |"
  )
  assert "| **does not fit**: 20.0 of 16 |  |  |  |  |" in second


@pytest.fixture
def command(monkeypatch, tmp_path):
  """The command, with a compiler that is told what to say."""
  compiled, says = [], {}

  def compile_apart(case, timeout):
    compiled.append(case.name)
    if case.name in says:
      raise UserError(says[case.name])
    return ROW | {"case": case.name, "compile_seconds": 7}

  def run(cases):
    values = flags.FlagValues()
    flags.DEFINE_string("out", str(tmp_path), "", flag_values=values)
    flags.DEFINE_string("cases", cases, "", flag_values=values)
    flags.DEFINE_bool("list", False, "", flag_values=values)
    flags.DEFINE_float("timeout", 1.0, "", flag_values=values)
    flags.DEFINE_string("one", None, "", flag_values=values)
    values.mark_as_parsed()
    monkeypatch.setattr(plan_all.flags, "FLAGS", values)
    plan_all.main()

  monkeypatch.setattr(plan_all, "compile_apart", compile_apart)
  return run, compiled, says


def test_the_command_goes_on_where_it_was_left(command, tmp_path, capsys):
  run, compiled, says = command
  says["howto100m"] = "no compiler"
  run("webvid$|howto100m")
  assert compiled == ["webvid", "howto100m"]
  assert "howto100m: no compiler" in capsys.readouterr().out
  says.clear()
  run("webvid|howto100m")
  # What has a row is left alone; what has failed is tried again.
  assert compiled[2:] == ["webvid_large", "howto100m"]
  lines = (tmp_path / "plans.jsonl").read_text().splitlines()
  assert len(lines) == 3
  cases = [
    line.split("`")[1]
    for line in (tmp_path / "plans.md").read_text().splitlines()[2:]
  ]
  assert cases == ["webvid", "webvid_large", "howto100m"]
  with pytest.raises(UserError, match="--cases=nothing matches no case"):
    run("nothing")


@pytest.mark.parametrize(
  ("code", "said"),
  [
    ("import sys; sys.exit('error: no libtpu')", "status 1: no libtpu"),
    ("import time; time.sleep(60)", "not compiled in 1 s"),
  ],
)
def test_a_compiler_that_ends_or_hangs_is_said(monkeypatch, code, said):
  real = plan_all.subprocess.run
  monkeypatch.setattr(
    plan_all.subprocess,
    "run",
    lambda command, **more: real([sys.executable, "-c", code], **more),
  )
  with pytest.raises(UserError, match=said):
    plan_all.compile_apart(CASES["tiny"], 1.0 if "sleep" in code else 60.0)


def test_a_row_is_the_last_line_of_the_other_process(monkeypatch):
  real = plan_all.subprocess.run
  code = f"print('fits'); print({json.dumps(json.dumps(ROW))})"
  monkeypatch.setattr(
    plan_all.subprocess,
    "run",
    lambda command, **more: real([sys.executable, "-c", code], **more),
  )
  assert plan_all.compile_apart(CASES["tiny"], 60.0) == ROW
