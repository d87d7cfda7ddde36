"""Makes one self-contained page of a run: curves, results, examples.

    python -m calince_jax.report --workdir=DIR [--out=DIR/report.html]

It reads config.json, metrics.jsonl and eval/*.json of the run, those that are
there, and starts no model.
"""

import dataclasses
from pathlib import Path

from absl import flags

from calince_jax import cli
from calince_jax.errors import UserError
from calince_jax.evals.report import page, read
from calince_jax.files import check_new_or_plain, check_place, write_atomic


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; `define_flags` says what each option is."""

  workdir: str
  out: str | None = None


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("workdir", None, "The run folder (--workdir of train).")
  flags.DEFINE_string(
    "out", None, "The file to write; default: WORKDIR/report.html."
  )
  flags.mark_flags_as_required(["workdir"])


def report(options: Options) -> Path:
  """Writes the page, prints the headline numbers, and returns the path."""
  check_place("--workdir", options.workdir)
  if options.out is not None:
    check_place("--out", options.out)
  workdir = Path(options.workdir)
  out = Path(options.out or workdir / "report.html")
  check_new_or_plain(out)
  html, summary = page.make_page(read.read_run(workdir), workdir)
  if not out.parent.is_dir():
    raise UserError(f"--out={out}: there is no folder {out.parent}")
  write_atomic(out, html)
  print(f"{summary}\n\nwrote {out}", flush=True)
  return out


if __name__ == "__main__":
  define_flags()
  cli.run(lambda: report(cli.options(Options)))
