"""Which captions do not fit their videos, and how many: before any training.

    python -m calince_jax.clean --manifest=clips.csv --out=OUT \\
        --video_features=VIDEO.npy[,MORE.npy] [--text_features=TEXT.npy]
    python -m calince_jax.clean --data=DATA --model=EXPORT --out=OUT

Each pair is scored by linear models on frozen features that were fitted without
it, and P(fits) is the posterior of its score. OUT gets pairs.parquet and
pairs.csv, report.html, and clean.csv, a manifest of the pairs that stay; the
data are not touched. If it is interrupted, the same command resumes.
cleaning/features.py says what a file of features is; docs/clean.md is a guide.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import flags

from calince_jax import cli
from calince_jax.cleaning import run
from calince_jax.cleaning.run import Options


def define_flags() -> None:
  """Defines the command line."""
  text, number, real = (
    flags.DEFINE_string,
    flags.DEFINE_integer,
    flags.DEFINE_float,
  )
  text("manifest", None, "The manifest of the pairs; or")
  text("source", None, "what else prepare reads: its --source; or")
  text("data", None, "a prepared data set.")
  text("format", Options.format, "As of prepare.")
  text("columns", Options.columns, "As of prepare.")
  flags.DEFINE_bool(
    "allow_outside_root",
    Options.allow_outside_root,
    "Whether videos may lie outside --root.",
  )
  text("out", None, "The folder that is written.")
  text("root", None, "The folder of the videos; default: the manifest's.")
  text("split", Options.split, "The split that is examined; all: every one.")
  text(
    "video_features",
    None,
    "Files of features of the clips, separated by commas; keys are clip ids.",
  )
  text(
    "text_features",
    None,
    "Files of features of the captions, separated by commas; keys are the"
    " captions. Words (TF-IDF) are always used too.",
  )
  text("model", None, "An export; encodes the clips of --data.")
  number("folds", Options.folds, "Parts that are scored by the others.", 2, 100)
  flags.DEFINE_enum(
    "fold_by",
    Options.fold_by,
    run.FOLD_BY,
    "What stays in one fold. group: of the manifest, where there are enough.",
  )
  real("keep", None, "The share of the pairs in clean.csv.", 0.0, 1.0)
  real(
    "keep_precision",
    None,
    "The share of right pairs expected in clean.csv; default: 0.95.",
    0.0,
    1.0,
  )
  number("worst", Options.worst, "Pairs with a picture in the page.", 0, 5000)
  number("seed", Options.seed, "Of folds, negatives and resampling.", 0, 2**31)
  flags.mark_flags_as_required(["out"])


def clean(options: Options) -> list[str]:
  """Examines the pairs, writes OUT, and returns the lines of the summary."""
  return run.run(options)


if __name__ == "__main__":
  define_flags()
  cli.run(
    lambda: clean(cli.options(Options)),
    interrupted="the same command resumes the work",
  )
