"""Makes one self-contained page of a run, or of a data set.

    python -m calince_jax.report --workdir=DIR [--out=DIR/report.html]
    python -m calince_jax.report --data=DIR [--out=DIR/card.html]

Of a run: curves, results, examples. It reads config.json, metrics.jsonl and
eval/*.json, those that are there, and starts no model. Of a prepared data set:
lengths, repeated clips and captions, what could not be used, pictures.
"""

import dataclasses
import datetime
from pathlib import Path

from absl import flags

from calince_jax import cli
from calince_jax.errors import UserError
from calince_jax.evals.report import card, page, read
from calince_jax.files import check_new_or_plain, check_place, write_atomic


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; `define_flags` says what each option is."""

  workdir: str | None = None
  data: str | None = None
  out: str | None = None


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string("workdir", None, "The run folder (--workdir of train).")
  flags.DEFINE_string("data", None, "A prepared data set, for its card.")
  more = "default: WORKDIR/report.html or DATA/card.html."
  flags.DEFINE_string("out", None, f"The file to write; {more}")
  flags.mark_flags_as_mutual_exclusive(["workdir", "data"], required=True)


def report(options: Options) -> Path:
  """Writes the page, prints the headline numbers, and returns the path."""
  of_run = options.workdir is not None
  folder = options.workdir if of_run else options.data
  check_place("--workdir" if of_run else "--data", folder)
  if options.out is not None:
    check_place("--out", options.out)
  folder = Path(folder)
  name = "report.html" if of_run else "card.html"
  out = Path(options.out or folder / name)
  check_new_or_plain(out)
  if of_run:
    html, summary = page.make_page(read.read_run(folder), folder)
  else:
    html, summary = card.make_card(folder, datetime.date.today().isoformat())
  if not out.parent.is_dir():
    raise UserError(f"--out={out}: there is no folder {out.parent}")
  write_atomic(out, html)
  print(f"{summary}\n\nwrote {out}", flush=True)
  return out


if __name__ == "__main__":
  define_flags()
  cli.run(lambda: report(cli.options(Options)))
