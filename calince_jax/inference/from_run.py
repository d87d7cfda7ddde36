"""The model of a training run, for evaluation and export."""

from typing import Any

from etils import epath

from calince_jax import config as config_lib
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import check_choice
from calince_jax.inference.exported import flatten, strict_params
from calince_jax.inference.model import VideoTextModel
from calince_jax.losses import calibration
from calince_jax.runtime import checkpoint

PARAMS = ("ema_params", "params")
TOKENIZER = "tokenizer.model"  # in the run folder


def open_run(
  workdir: str, *, step: int | None = None, params: str = "ema_params"
) -> tuple[VideoTextModel, int, dict[str, Any]]:
  """The model of a run, its step, and the run's configuration.

  Args:
    workdir: the run folder.
    step: of the checkpoint; None for the latest.
    params: `ema_params`, the moving average, or `params`.

  Raises:
    UserError: not the folder of a run, no such checkpoint, or its parameters
      are not those of the model that config.json describes.
  """
  check_choice("params", params, PARAMS)
  config = config_lib.read_run(workdir)
  step, saved = checkpoint.restore_parts(workdir, step, [params, "calibration"])
  tokenizer = Tokenizer(epath.Path(workdir) / TOKENIZER)
  objective = config_lib.objective(config)
  shape = config_lib.model_config(config, tokenizer.vocabulary)
  where = f"checkpoint {step} of {workdir}"
  model = VideoTextModel(
    shape,
    strict_params(shape, flatten(saved[params]), f"{where} and config.json"),
    tokenizer,
    {"trained": bool(objective.correspondence_weight)}
    | calibration.inference_calibration(
      saved["calibration"],
      scorer=objective.scorer,
      noise_rate=objective.noise_rate,
    ),
    config_lib.sampling(config),
  )
  return model, step, config
