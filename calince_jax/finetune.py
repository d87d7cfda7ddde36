"""Fine-tunes a trained model; started again, it resumes the run.

    python -m calince_jax.finetune --from=MODEL --workdir=DIR \
      --config=configs/finetune_retrieval.py --config.data.datasets=DATA

MODEL is an export or a run. The towers and heads are its own, with all their
parameters; frames, pixels and tokens are too, unless --config.data says other
ones. configs/finetune_recognition.py trains a classifier of the data's labels:
`:full` with the whole video tower, `:partial` with its last two blocks,
`:probe` alone. The run is one of `train`: evaluate and export take it.
"""

import dataclasses
import os
from collections.abc import Iterable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import flags
from ml_collections import ConfigDict, config_flags

from calince_jax import cli, fields, train
from calince_jax import config as config_lib
from calince_jax.data.records import reader
from calince_jax.errors import UserError
from calince_jax.models.cali_nce import ModelConfig
from calince_jax.runtime import run_folder
from calince_jax.warm_start import whole

# How a model is computed and trained, not what it is.
FREE = ("dropout", "dtype", "scan", "remat", "classes")
SHAPES = ("num_frames", "image_size", "text_length")


def define_flags() -> None:
  """Defines the command line: that of train, and --from."""
  train.define_flags()
  flags.DEFINE_string("from", None, "The export or run to start from.")
  flags.mark_flag_as_required("from")


def finetune(options: train.Options, source: str) -> None:
  """Trains, or resumes, the run in `options.workdir` from `source`."""
  config = completed(options.config, options.workdir, source)
  train.main(dataclasses.replace(options, config=config))


def completed(config: ConfigDict, workdir: str, source: str) -> ConfigDict:
  """`config` with the model of `source`; where a run is there, with its own.

  Args:
    config: of finetune_retrieval or finetune_recognition; the keys of its data
      that are None become the model's.
    workdir: the run folder.
    source: an export or a run.

  Raises:
    UserError: `source` is neither, or the data has too few labels.
  """
  if run_folder.exists(workdir):  # `source` need not be there any more
    begun = config_lib.read_run(workdir)
    model, shapes = begun["model"], begun["data"]
  else:
    model, shapes = whole.read_settings(source)
  changed = ConfigDict(config.to_dict())
  kept = {name: model[name] for name in fields.annotations(ModelConfig)}
  free = {name: config.model[name] for name in FREE}
  if not free["classes"]:
    free["classes"] = tuple(model["classes"])
  with changed.unlocked():
    changed.model = ConfigDict(kept | free)
    for name in SHAPES:
      if changed.data[name] is None:
        changed.data[name] = shapes[name]
  changed.init.model = source
  if config.objective.classification_weight and not config.model.classes:
    changed.model.classes = labels(config_lib.data_mix(changed.to_dict())[0])
  return changed


def labels(folders: Iterable[str]) -> tuple[str, ...]:
  """The labels of prepared data sets, sorted.

  Raises:
    UserError: there are fewer than two.
  """
  found = sorted({one for f in folders for one in reader.read_info(f).labels})
  if len(found) < 2:
    raise UserError(
      f"the clips of {', '.join(folders)} have {len(found)} different labels: a"
      " classifier needs at least two; give the manifest a column 'label' and"
      " run prepare again"
    )
  return tuple(found)


def check_overrides(overrides: Iterable[str]) -> None:
  """UserError where the command line asks for another model."""
  for key in overrides:
    section, _, name = key.partition(".")
    if section == "model" and name not in FREE:
      raise UserError(
        f"--config.{key}: the model is that of --from; of config.model only"
        f" {', '.join(FREE)} can be chosen"
      )


def main() -> None:
  """Fine-tunes as the flags say."""
  flag = flags.FLAGS["config"]
  check_overrides(config_flags.get_override_values(flag))
  finetune(cli.options(train.Options), flags.FLAGS["from"].value)


if __name__ == "__main__":
  define_flags()
  cli.run(main, interrupted="the same command resumes from the last checkpoint")
