"""`pip install .` is enough, and the core needs no TensorFlow."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

PACKED = ("calince_jax", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """A folder with the installed package; the sources are left as they are."""
  folder = tmp_path_factory.mktemp("install")
  (folder / "source").mkdir()
  for name in PACKED:
    if (ROOT / name).is_dir():
      ignored = shutil.ignore_patterns("__pycache__")
      shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    else:
      shutil.copyfile(ROOT / name, folder / "source" / name)
  subprocess.run(
    [
      *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
      *("--no-build-isolation", "--disable-pip-version-check"),
      *(f"--target={folder / 'site'}", "."),
    ],
    cwd=folder / "source",
    check=True,
    timeout=120,
  )
  return folder / "site"


def python(code, folder, path):
  """What `code` prints, run in `folder` with `path` before site-packages."""
  return subprocess.run(
    [sys.executable, "-c", code],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(path)},
    check=True,
    timeout=120,
    stdout=subprocess.PIPE,
    text=True,
  ).stdout.splitlines()


def test_it_is_imported_from_where_it_was_installed(installed, tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
  said = python(
    "import calince_jax, sys\n"
    "print(calince_jax.__file__, calince_jax.__version__)\n"
    "print('jax' in sys.modules)\n"
    "from calince_jax import prepare, train, evaluate, export\n"
    "from calince_jax.report import Path, page, read\n"
    "text = page.render(read.read_run(Path('.')))\n"
    "print(page.__file__, '<style>' in text and len(text) > 2000)\n",
    tmp_path,
    installed,
  )
  file, version = said[0].split()
  assert file == str(installed / "calince_jax" / "__init__.py")
  assert (installed / f"calince_jax-{version}.dist-info").is_dir()
  assert said[1] == "False", "import calince_jax must cost nothing"
  file, whole = said[2].split()
  assert file.startswith(str(installed)) and whole == "True"
  for name in ("report.html", "report.css"):
    assert (
      (installed / "calince_jax" / "evals" / "report" / name).stat().st_size
    )


def test_tests_and_configs_are_not_installed(installed):
  names = {path.name for path in installed.iterdir()}
  assert {n for n in names if not n.endswith(".dist-info")} == {"calince_jax"}


CORE = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "clu"):
  sys.modules[name] = None  # importing it raises ImportError
import pkgutil, importlib
import calince_jax.losses, calince_jax.models
names = ["calince_jax.%s" % name for name in ("config", "inference.from_run",
  "inference.model", "runtime.checkpoint", "runtime.sharding", "train",
  "training.optimizer", "training.step")]
for package in (calince_jax.losses, calince_jax.models):
  names += [m.name for m in
            pkgutil.iter_modules(package.__path__, package.__name__ + ".")]
for name in names:
  importlib.import_module(name)
print(len(names))
"""


def test_the_core_runs_without_tensorflow(tmp_path):
  (count,) = python(CORE, tmp_path, ROOT)
  assert int(count) >= 8 + 4 + 5  # entry rooms, losses, models


def test_this_test_could_fail(tmp_path):
  code = CORE.replace('"config"', '"data.input.batches"')
  with pytest.raises(subprocess.CalledProcessError):
    python(code, tmp_path, ROOT)
