"""Compiles train steps for many pods: what fits, what it costs.

    python -m benchmarks.plan_all --out=runs/plan_all [--cases=REGEX] [--list]

The configurations for real runs on their pods, and B, L and g towers on 16 and
32 frames, batches of 4,096 to 65,536, on v5e-256, one and two slices, v6e-256,
v5p-64 and 8 H100. Needs libtpu (`pip install "jax[tpu]==VERSION OF jax"`).
Nothing is run: times are lower bounds.

Each case is compiled in a process of its own, takes minutes of a core, and adds
a row to OUT/plans.jsonl; the same command goes on with the cases that have no
row. OUT/plans.md is the table, which `python -m benchmarks.results` puts into
docs/results.md.
"""

import dataclasses
import importlib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no accelerator is opened

from absl import flags

from calince_jax import cli
from calince_jax.errors import UserError
from calince_jax.runtime import platform_flags, topologies

GIB = 2**30
CONFIGS = ("webvid", "webvid_large", "howto100m", "kinetics_titles")
# Topology, slices, clips of B on 16 frames that a chip encodes at a time.
PODS = (
  ("v5e:16x16", 1, 16),
  ("v5e:16x16", 2, 16),
  ("v6e:16x16", 1, 32),
  ("v5p:4x4x4", 1, 64),
  ("gpu:8xH100", 1, 32),
)
TOWERS = {"B": 1, "L": 4, "g": 8}  # how many fewer clips at a time
FRAMES = {16: 1, 32: 2}  # likewise
BATCHES = (4096, 16384, 65536)
TINY = {
  "batch_size": 8,
  "data.num_frames": 2,
  "data.image_size": 32,
  "data.text_length": 8,
  "model.video.size": "mu",
  "model.video.temporal_depth": 1,
  "model.text.size": "mu",
  "model.scan": False,
  "model.embedding_dim": 16,
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A step to compile: a file of configs/, changes to it, and a pod."""

  name: str
  config: str
  changes: Mapping[str, Any]
  topology: str
  slices: int


def cases() -> Iterator[Case]:
  """All of them, the cheap ones first."""
  yield Case("tiny", "infonce", TINY, "cpu:4", 1)  # whether this runs at all
  for name in CONFIGS:
    topology, slices = importlib.import_module(f"configs.{name}").POD
    yield Case(name, name, {}, topology, slices)
  for batch in BATCHES:
    for frames, longer in FRAMES.items():
      for tower, larger in TOWERS.items():
        for topology, slices, at_once in PODS:
          yield grid_case(
            *(topology, slices, tower, frames, batch),
            at_once=max(at_once // larger // longer, 1),
          )


def grid_case(
  topology: str,
  slices: int,
  tower: str,
  frames: int,
  batch: int,
  *,
  at_once: int,
) -> Case:
  """A case of the grid, encoded in chunks of at most `at_once` clips a chip."""
  name = f"{tower},{frames} frames,{batch},{slices} x {topology}"
  here = batch // (device_count(topology) * slices)
  changes = {
    "batch_size": batch,
    "data.num_frames": frames,
    "model.video.size": tower,
    "model.text.size": tower,
    "grad_cache_chunks": max(here // at_once, 1),
  }
  return Case(name, "webvid", changes, topology, slices)


def device_count(topology: str) -> int:
  """Devices of v5e:16x16, or of gpu:8xH100."""
  parts = topology.partition(":")[2].split("x")
  return math.prod(int(part) for part in parts if part.isdecimal())


def config_of(case: Case) -> Any:
  """The configuration of a case, a ConfigDict."""
  config = importlib.import_module(f"configs.{case.config}").get_config()
  config.update_from_flattened_dict(dict(case.changes))
  return config


def row(case: Case) -> dict[str, Any]:
  """Compiles a case; the numbers of its row.

  Raises:
    UserError: there is no compiler for this pod.
  """
  # Not needed by the process that starts the others.
  from calince_jax import plan as plan_lib
  from calince_jax.training import ahead_of_time

  begin, config = time.monotonic(), config_of(case)
  made = plan_lib.plan(
    plan_lib.Options(config, case.topology, num_slices=case.slices)
  )
  chip = topologies.chip_of(case.topology)
  fits = made.fits and (chip is None or made.memory <= chip.memory)
  found = {
    "case": case.name,
    "towers": config.model.video.size,
    "frames": config.data.num_frames,
    "batch": config.batch_size,
    "chunks": config.grad_cache_chunks,
    "topology": case.topology,
    "slices": case.slices,
    "devices": made.devices,
    "parameters": made.parameters,
    "fits": fits,
    "memory": made.memory,
    "replicated": sum(size for _, size in made.replicated),
    "sent": sum(made.sent.values()),
    "sent_between_slices": made.sent_between_slices,
    "memory_traffic": made.memory_traffic,
    "model_flops": made.model_flops,
    "compile_seconds": round(time.monotonic() - begin),
  }
  if made.fits and chip:
    found["seconds"] = ahead_of_time.seconds(made, chip)
    slowest = max(found["seconds"].values())
    peak = made.devices * chip.flops
    found["mfu"] = made.model_flops / peak / slowest
  return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows in Markdown."""
  lines = [
    "| case | pod | batch (chunks) | M parameters | GiB of a chip | sent,"
    " GB a step | a step takes at least | clips/s at most | MFU at most |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for x in rows:
    chip = topologies.chip_of(x["topology"])
    limit = f" of {chip.memory / GIB:.0f}" if chip else ""
    memory = f"{x['memory'] / GIB:.1f}{limit}"
    cells = [
      f"{x['towers']}, {x['frames']} frames"
      + (f" (`{x['case']}`)" if x["case"] in CONFIGS else ""),
      f"{x['slices']} x {x['topology']}",
      f"{x['batch']:,} ({x['chunks']})",
      f"{x['parameters'] / 1e6:,.0f}",
      memory if x["fits"] else f"**does not fit**: {memory}",
    ]
    if "seconds" in x:
      by = max(x["seconds"], key=x["seconds"].get)
      slowest = x["seconds"][by]
      cells += [
        f"{x['sent'] / 1e9:.2f}",
        f"{slowest:.2f} s by {by}",
        f"{x['batch'] / slowest:,.0f}",
        f"{x['mfu']:.0%}",
      ]
    else:
      cells += ["", "", "", ""]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def read_rows(out: Path) -> list[dict[str, Any]]:
  """The rows that are there, in the order of the cases."""
  path = out / "plans.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  found = {x["case"]: x for x in map(json.loads, lines)}
  return [found[case.name] for case in cases() if case.name in found]


def compile_apart(case: Case, timeout: float) -> dict[str, Any]:
  """The row of a case, compiled in a process of its own.

  Raises:
    UserError: it ended otherwise; its last line says why.
  """
  command = [sys.executable, "-m", "benchmarks.plan_all", f"--one={case.name}"]
  try:
    done = subprocess.run(
      command, capture_output=True, text=True, timeout=timeout, check=False
    )
  except subprocess.TimeoutExpired as error:
    raise UserError(f"not compiled in {timeout:.0f} s") from error
  if done.returncode:
    said = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise UserError(f"status {done.returncode}: {said.removeprefix('error: ')}")
  return json.loads(done.stdout.strip().splitlines()[-1])


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("out", "runs/plan_all", "folder of the rows")
  flags.DEFINE_string("cases", "", "regular expression; default: all but tiny")
  flags.DEFINE_bool("list", False, "print the names of the cases, and end")
  flags.DEFINE_float("timeout", 3600.0, "seconds for one case", 1.0)
  flags.DEFINE_string("one", None, "compile this case here, and print its row")


def main() -> None:
  """Compiles the cases that have no row yet, and writes the table."""
  F = flags.FLAGS
  known = {case.name: case for case in cases()}
  if F.one is not None:
    platform_flags.apply()  # those of train
    print(json.dumps(row(known[F.one])), flush=True)
    return
  pattern = re.compile(F.cases or r"(?!tiny$)")
  chosen = [case for case in known.values() if pattern.match(case.name)]
  if not chosen:
    raise UserError(f"--cases={F.cases} matches no case; see --list")
  if F.list:
    print("\n".join(case.name for case in chosen))
    return
  out = Path(F.out)
  out.mkdir(parents=True, exist_ok=True)
  there = {x["case"] for x in read_rows(out)}
  for case in chosen:
    if case.name in there:
      continue
    try:
      found = compile_apart(case, F.timeout)
    except UserError as error:
      print(f"{case.name}: {error}", flush=True)
      continue
    with (out / "plans.jsonl").open("a") as file:
      file.write(json.dumps(found) + "\n")
    fits = "fits" if found["fits"] else "does not fit"
    print(f"{case.name}: {fits}, {found['compile_seconds']} s", flush=True)
  (out / "plans.md").write_text(table(read_rows(out)) + "\n")
  print(f"wrote {out / 'plans.md'}")


if __name__ == "__main__":
  define_flags()
  cli.run(main)
