"""Bad input on a command line ends in one clear message, never a traceback."""

import pytest
from conftest import start, tiny_flags, wait

SECONDS = 120


def fail(module, *flags):
  """What the command prints on stderr, and its status; it must fail."""
  process = start(module, *flags)
  _, err = wait(process, SECONDS)
  assert process.returncode not in (0, None), err
  assert "Traceback" not in err
  return err.strip().splitlines(), process.returncode


CONFIG = "--config=configs/cali_nce.py"
WRONG = {
  "unknown key": (
    ("train", CONFIG, "--workdir=OUT", "--config.batchsize=8"),
    "no key 'batchsize'; see configs/base.py. Did you mean \"batch_size\"",
  ),
  "no such config": (
    ("train", "--config=configs/magic.py", "--workdir=OUT"),
    "configs/magic.py",
  ),
  "unknown choice": (
    ("train", "TINY", "--workdir=OUT", "--config.model.head=magic"),
    "config.model.head='magic' must be one of ['mlp'",
  ),
  "positional argument": (
    ("train", CONFIG, "--workdir=OUT", "batch_size=8"),
    "unexpected argument 'batch_size=8'; flags are written --name=value",
  ),
  "data folder missing": (
    ("train", CONFIG, "--workdir=OUT", "--config.data.datasets=nowhere"),
    "nowhere is not a prepared data set",
  ),
  "unknown argument of a configuration": (
    ("train", "--config=configs/finetune_recognition.py:half", "--workdir=OUT"),
    "finetune_recognition.py='half' is unknown; choose one of ['full'",
  ),
  "unknown task": (
    ("evaluate", "--workdir=OUT", "--task=captioning"),
    "--task='captioning' is unknown; choose one of ['retrieval'",
  ),
  "nothing to report": (("report", "--workdir=OUT"), "OUT holds no"),
  "wrong type": (
    ("train", CONFIG, "--workdir=OUT", "--config.batch_size=many"),
    "--config.batch_size=many: invalid literal for int()",
  ),
  "missing flag": (("train", CONFIG), "Flag --workdir must have a value"),
  "wrong choice of a flag": (
    ("export", "--workdir=OUT", "--out=OUT", "--params=magic"),
    "--params=magic: value should be one of <ema_params|params>",
  ),
}


def flags_of(command, tiny_dataset, tmp_path):
  flags = []
  for part in command:
    if part == "TINY":
      flags += tiny_flags(tiny_dataset)
    else:
      flags.append(part.replace("OUT", str(tmp_path / "out")))
  return flags


@pytest.mark.parametrize("kind", WRONG)
def test_one_line_says_what_is_wrong(tiny_dataset, tmp_path, kind):
  command, message = WRONG[kind]
  lines, status = fail(*flags_of(command, tiny_dataset, tmp_path))
  assert status == 2 and len(lines) == 1, lines
  assert lines[0].startswith("error: ")
  assert message.replace("OUT", str(tmp_path / "out")) in lines[0]
  assert not (tmp_path / "out").exists()
