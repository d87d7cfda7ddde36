"""--shards and --runner=beam: several processes, the bytes of one."""

import functools
import pickle
import signal
import sys
import time

import forked
import pytest

from benchmarks.hostile.films import GOOD, film
from calince_jax.data.records import beam, parts, plan
from calince_jax.data.records.parts import ALL, Part, claim, parse_part
from calince_jax.data.sources.manifest import Manifest
from calince_jax.data.video.workers import DecodeWorkers
from calince_jax.errors import UserError
from calince_jax.prepare import Options, prepare

COUNT = 12


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
  """12 films, and one row that lies outside its video."""
  folder = tmp_path_factory.mktemp("films")
  rows = ["video,text,start,split"]
  for i in range(COUNT):
    film(folder / f"{i}.mp4", *GOOD["mp4"][:2], frames=8 + i)
    rows.append(f"{i}.mp4,film number {i},,{'test' if i % 3 else 'train'}")
  rows.append("0.mp4,too late,77,train")
  (folder / "clips.csv").write_text("\n".join(rows))
  return folder / "clips.csv"


def options(manifest, out, **others):
  return Options(
    manifest=str(manifest),
    out=str(out),
    clips_per_shard=2,
    num_workers=1,
    short_side=32,
    **others,
  )


def start(manifest, out, shards):
  """Starts the command."""
  words = ("--clips_per_shard=2", "--num_workers=1", "--short_side=32")
  return forked.start(
    "calince_jax.prepare",
    f"--manifest={manifest}",
    f"--out={out}",
    f"--shards={shards}",
    *words,
  )


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory):
  """What one process makes: seven shards, and their heads."""
  out = tmp_path_factory.mktemp("whole") / "set"
  prepare(options(manifest, out))
  made = contents(out)
  assert sum(name.startswith("clips-") for name in made) == 14
  assert b"outside the video" in made["ledger.csv"]
  return made


# ------------------------------------------------------------ parts


def test_parts_that_share_a_shard_overlap():
  every = [Part(k, n) for n in range(1, 7) for k in range(n)]
  numbers = list(range(200))
  for one in every:
    for other in every:
      shared = set(numbers[one.numbers]) & set(numbers[other.numbers])
      assert one.overlaps(other) == bool(shared), (one, other)


def test_parts_are_named_as_in_an_array_of_jobs():
  assert parse_part("3/8") == Part(3, 8) and str(Part(3, 8)) == "3/8"
  for text in ("8/8", "-1/8", "0/0", "1", "", "1/2/3", "٣/8", "0/9999999"):
    with pytest.raises(UserError, match="must be K/N with 0 <= K < N"):
      parse_part(text)


def test_an_overlapping_claim_is_refused_by_name(tmp_path):
  out = tmp_path / "set"
  with claim(out, Part(1, 2)):
    for part, name in ((Part(1, 2), "1/2"), (Part(3, 4), "1/2"), (ALL, "1/2")):
      words = f"another prepare of shards {name} is at work .*: process "
      with pytest.raises(UserError, match=words), claim(out, part):
        pass
    with claim(out, Part(0, 4)), claim(out, Part(2, 4)):
      assert parts.others_at_work(out, Part(1, 2))
    assert not parts.others_at_work(out, Part(1, 2))
  with (
    claim(out, ALL),
    pytest.raises(UserError, match="another prepare is at work"),
    claim(out, Part(3, 8)),
  ):
    pass


def test_other_settings_beside_work_in_progress_are_refused(manifest, tmp_path):
  """Without them, an unfinished start is begun anew."""
  out, clips = tmp_path / "set", Manifest(str(manifest)).scan()[0]
  with claim(out, Part(0, 2)):
    plan.begin(out, {"a": 1}, clips, shared=False)
    with pytest.raises(UserError, match="prepared with another a;"):
      plan.begin(out, {"a": 2}, clips, shared=True)
  plan.begin(out, {"a": 2}, clips, shared=False)


# ------------------------------------------------------------ processes


def test_two_processes_at_once_give_the_bytes_of_one(manifest, whole, tmp_path):
  out = tmp_path / "set"
  processes = [start(manifest, out, shards) for shards in ("0/2", "1/2")]
  said = [process.communicate(timeout=120) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  assert contents(out) == whole
  assert [path.name for path in out.iterdir() if path.is_dir()] == []
  assert prepare(options(manifest, out, shards="1/2")).num_pairs == 13


def test_a_killed_process_is_started_again(manifest, whole, tmp_path, capsys):
  out = tmp_path / "set"
  process = start(manifest, out, "0/2")
  notes, deadline = out / parts.WORK_FOLDER, time.monotonic() + 60
  while not [*notes.glob("clips-*.json")]:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.wait(30)
  done = out / next(notes.glob("clips-*.json")).name.removesuffix(".json")
  before = done.stat().st_mtime_ns
  assert prepare(options(manifest, out, shards="1/2")) is None
  assert "are left for other processes" in capsys.readouterr().out
  assert not (out / "dataset.json").exists()
  prepare(options(manifest, out, shards="0/2"))
  assert done.stat().st_mtime_ns == before  # it was not made again
  assert contents(out) == whole


def test_what_is_too_much_for_all_is_found_when_parts_are_joined(
  manifest, whole, tmp_path
):
  """A part knows its own bad clips; a plain prepare joins what is written."""
  rows = manifest.read_text().splitlines()
  late = [row.replace(",,", ",77,") for row in rows[2:5]]
  listed = manifest.with_name("late.csv")
  listed.write_text("\n".join([*rows, *late]))
  out = tmp_path / "set"
  shards = plan.plan_shards(Manifest(str(listed)).scan()[0], 2)
  bad = [
    sum(clip.start == 77 for s in shards[k::2] for clip in s.clips)
    for k in range(2)
  ]
  assert sum(bad) == 4 and max(bad) < 4
  limit = (max(bad) + 0.5) / 16
  first = options(listed, out, shards="0/2", max_bad_fraction=limit)
  assert prepare(first) is None
  with pytest.raises(UserError, match="3 of 16 clips cannot be used so far"):
    prepare(options(listed, out, shards="1/2", max_bad_fraction=limit))
  info = prepare(options(listed, out, max_bad_fraction=0.3))
  assert info.num_pairs == 16


# ------------------------------------------------------------ Beam


def test_without_beam_one_line_says_how_to_install_it(
  manifest, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(UserError, match=r"pip install '\.\[beam\]'"):
    prepare(options(manifest, tmp_path / "a", runner="beam"))
  with pytest.raises(UserError, match="needs --runner=beam"):
    prepare(options(manifest, tmp_path / "b", beam_options="--region=x"))


def test_a_worker_of_beam_gets_all_it_needs(manifest, whole, tmp_path):
  """What is sent is bytes; a shard that is written is not written again."""
  clips = Manifest(str(manifest)).scan()[0]
  opts = options(manifest, tmp_path)
  workers = functools.partial(
    DecodeWorkers, 1, opts.encoding, time_limit=60.0, memory_limit_mb=2048
  )
  (tmp_path / parts.WORK_FOLDER).mkdir()
  shard = plan.plan_shards(clips, 2)[0]
  sent = pickle.dumps((shard, {"out": str(tmp_path), "workers": workers}))
  for _ in range(2):
    shard, arguments = pickle.loads(sent)
    assert [*beam._write(shard, **arguments)] == []
    made = contents(tmp_path)
    assert len(made) == 2 and made.items() <= whole.items()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
  assert files == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}


def test_beam_writes_the_bytes_of_one_process(manifest, whole, tmp_path):
  pytest.importorskip("apache_beam")
  out = tmp_path / "set"
  prepare(options(manifest, out, runner="beam"))
  assert contents(out) == whole
