"""Tries what nobody thought of: files, folders, flags, environment and timing.

    python -m benchmarks.hostile.fuzz [--examples=1000]

`hypothesis` draws what stands where the code writes or reads, and shrinks what
breaks it to its smallest form. Each property holds for whatever is drawn:
something works, or it is refused in one message and everything is as it was.
tests/fuzz_test.py runs the same with few examples.
"""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import hypothesis
import hypothesis.strategies as st
from absl import flags
from ml_collections import config_flags

from benchmarks.hostile.settings import attempt, is_fault
from calince_jax import cli, files
from calince_jax.data.sources.manifest import COLUMNS, read_manifest
from calince_jax.data.video.clock import MAX_GAP, TimedFrames
from calince_jax.errors import UserError
from calince_jax.evals.report import read
from calince_jax.runtime import checksums, folder_lock, run_folder

ROOT = Path(__file__).parents[2]


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_integer("examples", 1000, "of each property", 1)


def fits(words: str) -> None:
  """AssertionError where a person would see anything but one line."""
  assert not is_fault(words), words


# ------------------------------------------------------------ what is drawn

ODD = st.text(
  st.one_of(
    st.characters(),
    st.sampled_from("\0\x1b\u200b\u2800\ufeff\u202e\ud800,\"'\n\r\t=@"),
  ),
  max_size=40,
)
VALUES = st.recursive(
  st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ODD),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(ODD, inner, max_size=3)
  ),
  max_leaves=6,
)
NAMES = st.sampled_from(
  ("0.mp4", "./0.mp4", "1.mp4", "../0.mp4", "x/../1.mp4", "none.mp4", "/", "")
)
STANDS = st.sampled_from(
  ("nothing", "file", "folder", "pipe", "device", "nowhere", "link")
)
ERRORS = st.sampled_from(
  (None, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS)
)


def put(path: Path, kind: str) -> None:
  """Puts something in the place of a file."""
  if kind == "file":
    path.write_bytes(b"old")
  elif kind == "folder":
    path.mkdir()
  elif kind == "pipe":
    os.mkfifo(path)
  elif kind == "device":
    path.symlink_to("/dev/null")
  elif kind == "nowhere":
    path.symlink_to("nowhere")
  elif kind == "link":
    path.with_name("far").write_bytes(b"old")
    path.symlink_to("far")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
  """An empty folder."""
  with tempfile.TemporaryDirectory() as folder:
    yield Path(folder)


# ------------------------------------------------------------ properties


@hypothesis.given(STANDS, STANDS, ERRORS, st.sampled_from(("fsync", "replace")))
def outputs(kind, beside, number, where):
  """A file is new, or as it was; what is no file is left alone."""
  with scratch() as folder:
    path = folder / "out"
    put(path, kind)
    if beside != "link":
      put(folder / "out.partial", beside)
    before = os.lstat(path) if os.path.lexists(path) else None

    def fails(*_):
      raise OSError(number, os.strerror(number))

    broken = mock.patch.object(os, where, fails) if number else None
    with broken or contextlib.nullcontext():
      try:
        files.write_atomic(path, b"new")
        done = True
      except (UserError, OSError) as error:
        done = False
        assert "Traceback" not in cli.one_line(cli.explanation(error))
    if done:
      assert path.read_bytes() == b"new" and number is None
      assert kind in ("nothing", "file", "link")
      assert path.is_symlink() == (kind == "link")
    else:
      after = os.lstat(path) if os.path.lexists(path) else None
      assert (before and before.st_ino) == (after and after.st_ino)
      assert kind not in ("file", "link") or path.read_bytes() == b"old"
    if beside in ("nothing", "file") and kind != "link":
      refused = kind not in ("nothing", "file", "link")
      left = (folder / "out.partial").exists()
      assert left == (refused and beside == "file")


ROWS = st.lists(
  st.dictionaries(
    st.sampled_from((*COLUMNS, "other")), st.one_of(ODD, VALUES, NAMES)
  ).flatmap(lambda row: NAMES.map(lambda name: {"video": name} | row)),
  max_size=6,
)


@hypothesis.given(ROWS, st.binary(max_size=8), st.integers(0, 400))
def manifests(rows, noise, place):
  """A manifest gives clips and problems, or one message."""
  with scratch() as folder:
    for i in range(2):
      (folder / f"{i}.mp4").write_bytes(b"x")
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    path = folder / "clips.jsonl"
    path.write_bytes(lines[:place] + noise + lines[place:])
    fits(attempt(lambda: checked_manifest(path)))


def checked_manifest(path: Path) -> None:
  """Each row is in a clip or has a reason."""
  clips, problems = read_manifest(path)
  assert len({clip.id for clip in clips}) == len(clips)
  assert len({(c.media, c.start, c.end) for c in clips}) == len(clips)
  for clip in clips:
    assert all(caption.text.strip() for caption in clip.captions)
  for problem in problems:
    assert all(dataclasses.astuple(problem))


@hypothesis.given(
  st.one_of(
    st.sampled_from(
      ("configs/cali_nce.py", "configs", "README.md", "configs/none.py", "")
    ),
    ODD,
  ),
  st.lists(
    st.tuples(
      st.one_of(
        st.sampled_from(
          ("batch_size", "objective.noise_rate", "model.video", "data", "nope")
        ),
        ODD,
      ),
      st.one_of(st.sampled_from(("8", "None", "nan", "[", "")), ODD),
    ),
    max_size=3,
  ),
  st.lists(ODD.map(lambda word: f"--{word}"), max_size=1),
)
def command_lines(config, overrides, others):
  """Flags are parsed, or one line says what is wrong with them."""
  words = ["train", f"--config={config}", *others]
  words += [f"--config.{key}={value}" for key, value in overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values)
  with contextlib.chdir(ROOT), mock.patch.object(sys, "argv", words):
    fits(attempt(lambda: cli.parse(words, values)))


FOREIGN = st.sets(
  st.sampled_from(
    ("dataset.json", "clips.csv", "videos", "config.json", "train.log", ".x",
     "checkpoints", "metrics.jsonl", "manifest.csv", "model.safetensors"),
  ),
  max_size=4,
)  # fmt: skip


@hypothesis.given(FOREIGN, ODD)
def run_folders(names, flag):
  """A folder of other things never becomes a run's."""
  fits(attempt(files.check_place, "--workdir", flag))
  with scratch() as folder:
    for name in names:
      (folder / name).write_text("{}")
    words = attempt(run_folder.check_free, str(folder))
    fits(words)
    mine = {"config.json", "checkpoints", "metrics.jsonl", "train.log", ".x"}
    assert bool(words) == (bool(names - mine) and "config.json" not in names)


@hypothesis.given(st.binary(max_size=300) | VALUES)
def files_of_others(content):
  """What stands in a run's files gives values or one message."""
  if not isinstance(content, bytes):
    content = json.dumps(content).encode()
  with scratch() as folder:
    for name in ("config.json", "metrics.jsonl", checksums.FILE, "lock.json"):
      (folder / name).write_bytes(content + b"\n")
    fits(attempt(read.read_run, folder))
    fits(attempt(run_folder.read_document, str(folder)))
    fits(attempt(checksums.damage, files.epath.Path(folder)))
    fits(attempt(hold, folder))


def hold(folder: Path) -> None:
  """Takes and gives back the lock."""
  with (
    mock.patch.object(folder_lock, "STALE", 0.0),
    folder_lock.held(folder, "another run", print),
  ):
    pass


STAMP = st.one_of(st.none(), st.integers(-(2**62), 2**62), st.integers(0, 400))


@hypothesis.given(
  st.lists(st.tuples(STAMP, STAMP), max_size=30),
  st.booleans(),
  st.sampled_from(("avi", "matroska", "mpegts")),
)
def clocks(stamps, reorders, container):
  """Whatever a file says, time is finite, does not fall and does not leap."""
  timed = TimedFrames(Container(container, stamps), Stream(reorders), 0.0)
  times = [time for time, _, _ in timed]
  assert len(times) == len(stamps)
  steps = [later - time for time, later in itertools.pairwise(times)]
  assert all(0 <= step <= MAX_GAP + 1e-3 * abs(times[0]) for step in steps)


class Container:
  """Gives packets of these stamps, a frame each."""

  def __init__(self, name, stamps):
    self.format = mock.Mock()
    self.format.name, self._stamps = name, stamps

  def demux(self, _):
    for pts, dts in self._stamps:
      one = mock.Mock(pts=pts, dts=dts, time_base=0.01, duration=4)
      one.decode = lambda one=one: [one]
      yield one


class Stream:
  """Of 25 frames a second."""

  time_base, average_rate, guessed_rate = 0.01, 25, 25

  def __init__(self, reorders):
    self.codec_context = mock.Mock(has_b_frames=reorders)


@hypothesis.given(ODD, st.sampled_from(("ascii", "latin-1", "utf-8")))
def environments(text, encoding):
  """A message can be printed, whatever the terminal's character set is."""
  written = io.BytesIO()
  stream = io.TextIOWrapper(written, encoding=encoding)
  with mock.patch.object(sys, "stdout", stream):
    cli.let_print_anything()
    print(text)
    stream.flush()
  said = cli.one_line(text)
  assert said.isprintable() and "\n" not in said


PROPERTIES: tuple[Callable[[], None], ...] = (
  outputs, manifests, command_lines, run_folders, files_of_others, clocks,
  environments,
)  # fmt: skip


def run(prop: Callable[[], None], examples: int, *, repeatable: bool) -> None:
  """Tries a property; raises what the smallest example that breaks it raises.

  Args:
    prop: one of PROPERTIES.
    examples: how many are drawn.
    repeatable: whether they are the same each time.
  """
  hypothesis.settings(
    max_examples=examples,
    deadline=None,
    derandomize=repeatable,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )(prop)()


def main() -> None:
  """Tries all properties."""
  for prop in PROPERTIES:
    run(prop, flags.FLAGS.examples, repeatable=False)
    print(f"{prop.__name__}: {flags.FLAGS.examples} examples hold", flush=True)


if __name__ == "__main__":
  define_flags()
  cli.run(main)
