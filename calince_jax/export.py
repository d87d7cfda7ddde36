"""Exports a run's model to a folder of its own, and checks it.

    python -m calince_jax.export --workdir=DIR --out=MODEL

MODEL holds model.safetensors and params/ (Orbax), the same parameters;
config.json (model, preprocessing, calibration); tokenizer.model; README.md, a
model card. `calince_jax.load(MODEL)` opens it.
"""

import dataclasses
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import flags
from etils import epath

from calince_jax import cli
from calince_jax.files import check_place
from calince_jax.inference import exported, from_run
from calince_jax.inference.model_card import model_card, read_results
from calince_jax.runtime import compile_cache


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; `define_flags` says what each option is."""

  workdir: str
  out: str
  step: int | None = None
  params: str = from_run.PARAMS[0]


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("workdir", None, "The run folder (--workdir of train).")
  flags.DEFINE_string(
    "out", None, "The folder to make; there is nothing of this name yet."
  )
  flags.DEFINE_integer(
    "step", None, "The step of the checkpoint to export; default: the latest."
  )
  flags.DEFINE_enum(
    "params",
    Options.params,
    from_run.PARAMS,
    "Which parameters to export: their moving average or the last ones.",
  )
  flags.mark_flags_as_required(["workdir", "out"])


def export(options: Options) -> Path:
  """Writes the export, prints and returns its folder."""
  check_place("--workdir", options.workdir, bucket=True)
  check_place("--out", options.out)
  compile_cache.enable()
  out = Path(options.out).resolve()
  exported.check_free(out)
  model, step, config = from_run.open_run(
    options.workdir, step=options.step, params=options.params
  )
  workdir = epath.Path(options.workdir)
  exported.write(
    out,
    model,
    tokenizer=(workdir / from_run.TOKENIZER).read_bytes(),
    card=model_card(out.name, model, step, config, read_results(workdir)),
  )
  print(f"exported step {step} to {out}", flush=True)
  return out


if __name__ == "__main__":
  define_flags()
  cli.run(lambda: export(cli.options(Options)))
