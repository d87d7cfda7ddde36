"""Makes one page of what a run has shown so far.

    python -m calince_jax.report --workdir=DIR [--out=DIR/report.html]

It reads config.json, metrics.jsonl and eval/*.json of the run, those that are
there, and starts no model.
"""

import datetime
import json
import os
import shlex
from pathlib import Path

import jinja2
from absl import flags

from calince_jax import cli
from calince_jax.errors import UserError
from calince_jax.evals.report import page


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("workdir", None, "of the run")
  flags.DEFINE_string("out", None, "default: WORKDIR/report.html")
  flags.mark_flags_as_required(["workdir"])


def main() -> None:
  """Reads, renders, writes, and prints the path."""
  workdir = Path(flags.FLAGS.workdir)
  out = Path(flags.FLAGS.out or workdir / "report.html")
  run = read_run(workdir)
  page, summary = make_page(run, workdir)
  if not out.parent.is_dir():
    raise UserError(f"--out={out}: there is no folder {out.parent}")
  unfinished = out.with_name(f".{out.name}.{os.getpid()}")
  unfinished.write_text(page, encoding="utf-8")
  unfinished.replace(out)
  print(summary)
  print(f"\nwrote {out}", flush=True)


def make_page(run: dict, workdir: Path) -> tuple[str, str]:
  """The page and the headline numbers.

  Raises:
    UserError: a file says what evaluate and train do not write.
  """
  try:
    return page.render(run), summary(run)
  except UserError:
    raise
  # Of files from others anything may be of another form, at any depth.
  except (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    jinja2.TemplateError,
  ) as error:
    wrong = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise UserError(
      f"a file of {workdir} is not as train and evaluate write it ({wrong}); "
      "run evaluate anew, or take back what was changed by hand"
    ) from error


def read_run(workdir: Path) -> dict:
  """What `report.render` takes.

  Raises:
    UserError: there is nothing to report, or a file is not JSON.
  """
  run = {"config": read_config(workdir / "config.json")}
  run["metrics"] = read_metrics(workdir / "metrics.jsonl")
  for task in page.TASKS:
    run[task] = read_json(workdir / "eval" / f"{task}.json")
  if not any(run.values()):
    raise UserError(
      f"{workdir} holds no config.json, no metrics.jsonl and no eval/*.json; "
      "is it the --workdir of a training run?"
    )
  return run | {
    "name": workdir.resolve().name,
    "workdir": shlex.quote(str(workdir)),
    "date": datetime.date.today().isoformat(),
  }


HEADLINES = (
  ("retrieval", [f"t2v_{m}" for m in ("R@1", "R@5", "R@10", "MedR")]),
  ("retrieval", [f"v2t_{m}" for m in ("R@1", "R@5", "R@10", "MedR")]),
  ("video_retrieval", ["R@1", "R@5"]),
  ("recognition", ["top1"]),
  ("calibration", ["auc", "noise_rate_estimate"]),
)


def summary(run: dict) -> str:
  """The headline numbers of what has been evaluated, chance beside each."""
  lines = [f"\n{'':36}{'result':>10}{'chance':>13}"]
  for task, names in HEADLINES:
    if run[task] is None:
      continue
    metrics, chance = run[task]["metrics"], run[task]["chance"]
    for name in (name for name in names if name in metrics):
      beside = f"{chance[name]:.2f}" if name in chance else ""
      if name == "noise_rate_estimate" and "noise_rate_true" in metrics:
        beside = f"(true {metrics['noise_rate_true']:.2f})"
      label = f"{task} {name}"
      lines.append(f"{label:<36}{metrics[name]:>10.2f}{beside:>13}")
  return "\n".join(lines)


def read_json(path: Path) -> dict | None:
  """The object in a file, None where there is no file."""
  if not path.exists():
    return None
  return _parse(_read(path), str(path))


def read_config(path: Path) -> dict | None:
  """The configuration in a run's config.json, None where there is no file."""
  document = read_json(path)
  if document is None:
    return None
  if not isinstance(document.get("config"), dict):
    raise UserError(f"{path}: not the config.json of a run, no key 'config'")
  return document["config"]


def read_metrics(path: Path) -> list[dict]:
  """The rows of metrics.jsonl by rising step, [] where there is no file.

  Where a step stands twice, because a run went on from an older checkpoint,
  the later line counts. A last line without its end is still being written.
  """
  if not path.exists():
    return []
  rows = []
  for number, line in enumerate(_read(path).split("\n")[:-1], 1):
    rows.append(_parse(line, f"{path}, line {number}"))
    if type(rows[-1].get("step")) is not int:
      raise UserError(f"{path}, line {number}: no whole number 'step'")
  by_step = {row["step"]: row for row in rows}
  return [by_step[step] for step in sorted(by_step)]


def _read(path: Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not UTF-8 ({error.reason})") from None


def _parse(text: str, where: str) -> dict:
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{where}: not JSON ({error})") from None
  if not isinstance(value, dict):
    raise UserError(f"{where}: not a JSON object")
  return value


if __name__ == "__main__":
  define_flags()
  cli.run(main)
