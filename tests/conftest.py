"""Eight CPU devices for every test, one compile cache, a tiny data set."""

import ctypes
import functools
import gc
import io
import json
import os
import resource
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
# A few steps are run of each program: the compiler need not try hard.
QUICK = "--xla_backend_optimization_level=0"
QUICK += " --xla_llvm_disable_expensive_passes=true"
# MLIR for each fused loop takes half as long again. Later versions of
# jaxlib do not know the option, and ignore it.
QUICK += " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
os.environ["XLA_FLAGS"] = f"{QUICK} --xla_force_host_platform_device_count=8"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
sys.path.insert(0, str(ROOT))

import forked
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from calince_jax import config as config_lib
from calince_jax.data.input.sampling import Sampling
from calince_jax.data.tokenizer import Vocabulary
from calince_jax.losses import calibration
from calince_jax.losses.objective import Objective
from calince_jax.models import cali_nce
from calince_jax.models.cali_nce import ModelConfig
from calince_jax.training import step as train_step

assert jax.device_count() == 8, "the tests need 8 CPU devices"

COLOURS = ("red", "green", "blue", "white")

# Files that take more than 20 seconds of one core, the slowest first. They are
# started first, and `bash launch/test.sh --quick` leaves them out.
SLOW_FILES = (
  "training/survival_test.py",
  "training/multihost_test.py",
  "benchmarks/commands_test.py",
  "training/run_test.py",
  "evaluate_test.py",
  "losses/tiled_nce_test.py",
  "training/communication_test.py",
  "plan_test.py",
  "export_test.py",
  "finetune_test.py",
  "training/grad_cache_test.py",
  "training/step_test.py",
  "models/cali_nce_test.py",
  "hostile_input_test.py",
  "launch/pods_test.py",
  "training/retrieval_eval_test.py",
  "runtime/run_folder_test.py",
  "readme_test.py",
  "losses/objective_test.py",
  "losses/noise_robust_test.py",
  "data/video/decode_test.py",
  "data/input/batches_test.py",
  "data/input/samples_test.py",
  "launch/sweep_test.py",
  "runtime/checkpoint_test.py",
  "losses/calibrated_nce_test.py",
  "losses/density_ratio_test.py",
  "losses/nce_kernel_test.py",
  "prepare_test.py",
  "install_test.py",
)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
  """Marks the tests of SLOW_FILES as slow, and puts them first."""

  def place(item):
    name = item.path.relative_to(ROOT / "tests").as_posix()
    return SLOW_FILES.index(name) if name in SLOW_FILES else len(SLOW_FILES)

  items.sort(key=place)
  for item in items:
    if place(item) < len(SLOW_FILES):
      item.add_marker(pytest.mark.slow)


# Compiled programs are what makes a worker grow, by 300 to 600 MB a file. They
# are dropped after each file, and within one when there are many.
MOST_RESIDENT = 1.2e9  # bytes


def free_memory():
  """Drops the compiled programs, and gives the memory back.

  After the compiler, most of it is free and yet kept by malloc.
  """
  jax.clear_caches()
  gc.collect()
  libc = ctypes.CDLL(None)
  if hasattr(libc, "malloc_trim"):  # glibc
    libc.malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def memory_of_a_file():
  yield
  free_memory()


@pytest.fixture(autouse=True)
def memory_of_a_test():
  yield
  statm = Path("/proc/self/statm")  # Linux
  if statm.exists():
    pages = int(statm.read_text().split()[1])
    if pages * os.sysconf("SC_PAGE_SIZE") > MOST_RESIDENT:
      free_memory()


PEAKS = []  # megabytes, of each worker that has ended


def pytest_sessionfinish(session):
  """A worker tells how large it was."""
  if hasattr(session.config, "workeroutput"):
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes, kilobytes
    session.config.workeroutput["peak"] = round(largest / unit)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  if getattr(node, "workeroutput", None):  # None: it was killed
    PEAKS.append(node.workeroutput["peak"])


def pytest_terminal_summary(terminalreporter):
  if PEAKS:
    terminalreporter.write_line(f"peak memory of the workers: {PEAKS} MB")


@pytest.fixture(scope="session")
def shared_data() -> Path:
  """Real clips kept beside the project; tests that need them skip without."""
  folder = ROOT.parent / "shared" / "data"
  if not folder.is_dir():
    pytest.skip("no ../shared/data beside the project")
  return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
  """A prepared data set: 40 training and 12 test clips of a moving square."""
  folder = tmp_path_factory.mktemp("tiny_dataset")
  write_tiny_dataset(folder)
  return folder


def write_tiny_dataset(folder: Path) -> None:
  """The square's colour and its direction are in the caption and label."""
  from calince_jax.data import tokenizer
  from calince_jax.data.records import schema, writer

  pair, texts, shards, splits = 0, [], {}, {}
  for split, count in (("train", 40), ("test", 12)):
    records = []
    for i in range(count):
      colour, right = COLOURS[i % 4], bool(i // 4 % 2)
      way = "right" if right else "left"
      captions = [f"a {colour} square {i} moves {way}", f"{colour} goes {way}"]
      records.append(
        {
          "id": f"{split}-{i}",
          "frames": [picture(colour, right, t, i) for t in range(8)],
          "texts": captions,
          "pair_indices": [pair, pair + 1],
          "matched": [1, int(i % 5 != 0)],
          "label": way,
          "split": split,
          "group": "",
          "duration": 1.0,
          "width": 40,
          "height": 32,
        }
      )
      texts += captions
      pair += 2
    path = schema.shard_path(folder, split, 0, 1)
    shards[split] = [(count, writer.write_shard(path, records))]
    splits[split] = {"clips": count, "pairs": 2 * count}
  tokenizer.train_tokenizer(texts, folder / "tokenizer.model", vocab_size=80)
  writer.write_info(
    folder,
    schema.DatasetInfo(
      format_version=schema.FORMAT_VERSION,
      name="tiny",
      frame_rate=8.0,
      short_side=32,
      splits=splits,
      num_pairs=pair,
      labels=["left", "right"],
      manifest_sha256="",
      settings={},
    ),
    shards,
  )


def picture(colour, right, t, i):
  picture = Image.new("RGB", (40, 32), (i, 40, 60))
  x = 3 * t if right else 24 - 3 * t
  picture.paste(Image.new("RGB", (10, 10), colour), (x, 4 + i % 16))
  buffer = io.BytesIO()
  picture.save(buffer, "JPEG", quality=95)
  return buffer.getvalue()


TINY_CONFIG = {
  "batch_size": 16,
  "total_steps": 6,
  "log_every": 2,
  "checkpoint_every": 3,
  "data.num_frames": 4,
  "data.image_size": 32,
  "data.text_length": 12,
  "model.video.size": "mu",
  "model.text.size": "mu",
  "model.video.temporal_depth": 1,
  "model.embedding_dim": 16,
  "model.dtype": "float32",
  "model.predictive_depth": 1,
  "model.head_hidden": 16,
  # Adam's very first step is the sign of the gradient, rounding and all.
  "optimizer.warmup_share": 0.2,
}


def tiny_config(
  dataset: Path,
  method: str = "cali_nce",
  changes: Mapping[str, Any] | None = None,
):
  """configs/METHOD.py with TINY_CONFIG on `dataset`, and `changes` to that."""
  import importlib

  config = importlib.import_module(f"configs.{method}").get_config()
  config.update_from_flattened_dict(
    {**TINY_CONFIG, "data.datasets": str(dataset), **(changes or {})}
  )
  return config


def tiny_flags(
  dataset: Path, changes: Mapping[str, Any] | None = None
) -> list[str]:
  """`tiny_config(dataset, changes=changes)` on a command line."""
  values = {**TINY_CONFIG, "data.datasets": str(dataset), **(changes or {})}
  return ["--config=configs/cali_nce.py"] + [
    f"--config.{name}={value}" for name, value in values.items()
  ]


def start(
  module: str, *flags: str, devices: int = 8, log: Path | None = None
) -> forked.Process:
  """Starts `python -m calince_jax.MODULE FLAGS` from the repository.

  What it says goes to `log`; where there is none, `wait` returns it.
  """
  return forked.start(
    f"calince_jax.{module}", *flags, out=log, env=environment(devices)
  )


def environment(devices: int) -> dict[str, str]:
  """That of a process that sees `devices` simulated devices."""
  xla = f"{QUICK} --xla_force_host_platform_device_count={devices}"
  return os.environ | {"XLA_FLAGS": xla}


@pytest.fixture(scope="module")
def forked_survival():
  """The functions of benchmarks/survival start their commands by `start`."""
  from benchmarks.survival import kills, peers

  with pytest.MonkeyPatch.context() as patch:
    for module in (kills, peers):
      patch.setattr(module, "start", start)
    yield


# Before a command that is to be interrupted: what a shell starts in the
# background ignores SIGINT, and so do its children.
LISTENING = ("env", "--default-signal=INT")


def wait(process: forked.Process, seconds: float) -> tuple[str, str]:
  """Its stdout and stderr; it is killed if it takes longer than `seconds`."""
  try:
    return process.communicate(timeout=seconds)
  finally:
    process.kill()


@pytest.fixture(scope="session")
def trained_run(tiny_dataset, tmp_path_factory) -> Path:
  """The folder of a run of TINY_CONFIG on 8 devices; do not write to it."""
  return train_tiny(tmp_path_factory.mktemp("run"), tiny_config(tiny_dataset))


@pytest.fixture(scope="session")
def infonce_run(trained_run, tiny_dataset, tmp_path_factory) -> Path:
  """A copy of `trained_run` as if it were InfoNCE's: its head is not used."""
  from calince_jax.runtime import run_folder

  workdir = tmp_path_factory.mktemp("infonce") / "run"
  shutil.copytree(trained_run, workdir)
  # The parameters are those of two heads.
  config = tiny_config(tiny_dataset, "infonce", {"model.cross_fit": True})
  document = run_folder.document(config.to_dict())
  (workdir / "config.json").write_text(json.dumps(document))
  return workdir


def train_tiny(workdir: Path, config) -> Path:
  """Trains in this process."""
  from calince_jax import train

  train.train(train.Options(str(workdir), config))
  return workdir


def make_tiny_model() -> ModelConfig:
  """The model of TINY_CONFIG with few words."""
  config = tiny_config(Path("none"), changes={"data.text_length": 8})
  return config_lib.model_config(config.to_dict(), Vocabulary(40))


TINY_MODEL = make_tiny_model()


def fresh_params(config: ModelConfig) -> Any:
  """Parameters of a model, without the price of compiling its `init`.

  They are of the size of fresh ones, and none is 0: gradients flow from the
  heads, and every bias matters.
  """
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    name, noise = path[-1].key, rng.normal(size=leaf.shape)
    if name in ("kernel", "embedding", "query"):
      value = noise / np.sqrt(max(leaf.shape))
    elif name == "log_logit_scale":
      value = np.log(config.logit_scale)
    else:
      value = (name == "scale") + 0.02 * noise
    return jnp.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, _param_shapes(config))


@functools.cache
def _param_shapes(config):
  model = config.build()
  return jax.eval_shape(lambda: cali_nce.init_params(model, 0))


def fresh_state(
  config: ModelConfig, optimizer: optax.GradientTransformation
) -> train_step.TrainState:
  """A training state of `fresh_params`, for 16 pairs."""
  params = fresh_params(config)
  zero = jnp.zeros((), jnp.int32)
  return train_step.TrainState(
    step=zero,
    params=params,
    opt_state=optimizer.init(params),
    ema_params=params,
    calibration=calibration.init_state(16),
    random_key=jax.random.key_data(jax.random.key(0)),
    bad_steps=zero,
    skipped_steps=zero,
  )


# Co-training with one negative; tests replace what they are about.
PLAIN_OBJECTIVE = Objective(
  total_steps=1000,
  correspondence_weight=1.0,
  contrastive_weight=1.0,
  predictive_weight=1.0,
  classification_weight=0.0,
  label_smoothing=0.0,
  contrastive="infonce",
  mask_duplicates=False,
  num_negatives=1,
  confidence="density_ratio",
  scorer="both",
  noise_rate=None,
  trust="schedule",
  floor=0.0,
  power=1.0,
  memory=0.0,
  warmup_share=0.0,
  ramp_share=0.0,
  weigh_predictive=True,
  histogram_decay=0.98,
)

# Of four frames; tests replace what they are about.
PLAIN_SAMPLING = Sampling(
  num_frames=4,
  image_size=32,
  frames="uniform",
  frame_stride=1,
  min_crop_area=0.5,
  resize="bilinear",
  flip="never",
  colour_jitter=0.0,
)


@pytest.fixture
def rng() -> np.random.Generator:
  """Seeded."""
  return np.random.default_rng(0)
