"""Makes a data set for training from videos and a manifest of captions.

    python -m calince_jax.prepare --manifest=clips.csv --out=DIR

Reads the manifest (data/sources/manifest.py) or another --source
(data/sources/choose.py), decodes every video in child
processes, and writes records of JPEG frames with their captions
(data/records/schema.py) and a tokenizer trained on the captions. What cannot
be used is listed in DIR/ledger.csv: path, what, why, what to do. If it is
interrupted, the same command resumes; on a finished data set it returns at
once.

Several processes, on one machine or on many that share a disk, write parts of
the same data set: --shards=0/8 to --shards=7/8, as in a Slurm array. The last
one to end makes the data set ready. With --runner=beam the workers of Apache
Beam write the shards.
"""

import dataclasses
import shlex

from absl import flags

from calince_jax import cli
from calince_jax.data.records.build import build
from calince_jax.data.records.parts import ALL, parse_part
from calince_jax.data.records.schema import DatasetInfo
from calince_jax.data.sources.annotations import FORMATS
from calince_jax.data.sources.choose import MANIFEST, choose_source
from calince_jax.data.video.jpeg import Encoding
from calince_jax.errors import UserError
from calince_jax.files import check_place


@dataclasses.dataclass(frozen=True)
class Options:
  """The command line; `define_flags` says what each option is."""

  manifest: str | None
  out: str
  root: str | None = None
  allow_outside_root: bool = False
  frame_rate: float = Encoding.frame_rate
  short_side: int = Encoding.short_side
  max_frames: int = Encoding.max_frames
  jpeg_quality: int = Encoding.jpeg_quality
  vocab_size: int = 8000
  tokenizer: str | None = None
  clips_per_shard: int = 256
  num_workers: int = 0
  time_limit: float = 60.0
  memory_limit_mb: int = 4096
  max_bad_fraction: float = 0.1
  source: str | None = None
  format: str = MANIFEST
  columns: str = ""
  shards: str = str(ALL)
  runner: str = "local"
  beam_options: str = ""

  @property
  def encoding(self) -> Encoding:
    """How frames are stored."""
    names = [field.name for field in dataclasses.fields(Encoding)]
    return Encoding(**{name: getattr(self, name) for name in names})


def define_flags() -> None:
  """Defines the flags; not at import, where two commands would clash."""
  text, number = flags.DEFINE_string, flags.DEFINE_integer
  real, default = flags.DEFINE_float, Options
  text("manifest", None, "*.csv, *.tsv or *.jsonl file with columns video,text")
  many = "other sources: *.parquet, a folder, 'shard-{000..099}.tar'"
  text("source", None, f"{many}; see data/sources/choose.py")
  known = [MANIFEST, *FORMATS]
  flags.DEFINE_enum("format", MANIFEST, known, "of published annotation files")
  more = "names of a table's columns: video:contentUrl,text:name"
  text("columns", "", more)
  text("out", None, "folder of the data set")
  text("root", None, "folder of the videos; default: the manifest's folder")
  more = "whether videos may lie outside --root"
  flags.DEFINE_bool("allow_outside_root", False, more)
  real("frame_rate", default.frame_rate, "frames stored per second", 0.01, 240)
  most = "upper bound of a frame's shorter side, in pixels"
  number("short_side", default.short_side, most, 8, 4096)
  most = "upper bound of the frames stored for one clip"
  number("max_frames", default.max_frames, most, 1, 100_000)
  number("jpeg_quality", default.jpeg_quality, "of the frames", 1, 95)
  most = "upper bound of the tokens of the vocabulary"
  number("vocab_size", default.vocab_size, most, 8, 1_000_000)
  more = "a SentencePiece model, or the tokenizer.json of the text tower's"
  text("tokenizer", None, f"{more} weights; default: trained on captions")
  most = "upper bound; an interrupted prepare resumes after a whole shard"
  number("clips_per_shard", default.clips_per_shard, most, 1)
  number("num_workers", 0, "decoding processes; 0: one per core", 0, 1024)
  real("time_limit", default.time_limit, "seconds for one clip", 0.001, 86_400)
  most = "address space of one decoding process, in MiB"
  number("memory_limit_mb", default.memory_limit_mb, most, 1, 2**20)
  most = "prepare stops when more than this share of the clips cannot be used"
  real("max_bad_fraction", default.max_bad_fraction, most, 0.0, 1.0)
  which = "K/N writes shards K, K+N, ...; other processes write the others"
  text("shards", str(ALL), which)
  which = "this process and its children, or Apache Beam"
  flags.DEFINE_enum("runner", "local", ["local", "beam"], which)
  more = "of Beam's pipeline: '--runner=DataflowRunner --region=...'"
  text("beam_options", "", more)
  flags.mark_flags_as_required(["out"])
  flags.mark_flags_as_mutual_exclusive(["manifest", "source"], required=True)


def prepare(options: Options) -> DatasetInfo | None:
  """Makes the data set, or resumes making it.

  Returns:
    None where other processes have not yet written their --shards.

  Raises:
    UserError: the manifest cannot be read, too many clips are unusable, or
      options.out holds something else.
  """
  check_place("--out", options.out)
  if options.manifest is not None:
    check_place("--manifest", options.manifest)
  return build(
    choose_source(
      options.source or options.manifest or "",
      form=options.format,
      columns=options.columns,
      root=options.root,
      allow_outside_root=options.allow_outside_root,
    ),
    options.out,
    encoding=options.encoding,
    tokenizer=options.tokenizer,
    vocab_size=options.vocab_size,
    clips_per_shard=options.clips_per_shard,
    num_workers=options.num_workers,
    time_limit=options.time_limit,
    memory_limit_mb=options.memory_limit_mb,
    max_bad_fraction=options.max_bad_fraction,
    part=parse_part(options.shards),
    beam_options=_beam_options(options),
  )


def _beam_options(options: Options) -> list[str] | None:
  """Of Beam's pipeline; None where it is not used."""
  if options.runner == "beam":
    return shlex.split(options.beam_options)
  if options.beam_options:
    raise UserError("--beam_options needs --runner=beam")
  return None


if __name__ == "__main__":
  define_flags()
  cli.run(
    lambda: prepare(cli.options(Options)),
    interrupted="the same command resumes the work",
  )
