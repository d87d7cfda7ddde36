"""CorruptRecordLog: the ledger, the counts and their limit."""

import concurrent.futures
import csv
import dataclasses
import itertools

import numpy as np
import pytest

from calince_jax import files
from calince_jax.data.input import corrupt_records
from calince_jax.data.input.corrupt_records import CorruptRecordLog
from calince_jax.data.problems import CorruptRecord
from calince_jax.errors import UserError

HEADER = ["path", "what", "why", "what_to_do"]


@dataclasses.dataclass
class Reader:
  """Of a data set that is not there."""

  directory: str
  size: int = 100
  split: str = "train"

  def __len__(self):
    return self.size


def corrupt(record, directory="some/set"):
  return CorruptRecord(directory, "train", record, f"byte {record}\nis, off")


def rows(path):
  with open(path, newline="") as file:
    return list(csv.reader(file))


def open_log(workdir, *readers, **settings):
  readers = readers or (Reader("some/set"),)
  return CorruptRecordLog(
    workdir, readers, **{"max_bad_fraction": 0.1} | settings
  )


def test_each_record_is_written_at_once_and_once(tmp_path, capsys):
  log = open_log(tmp_path / "run")
  assert not (tmp_path / "run").exists()
  expected = [HEADER]
  for record in (17, 3, 17, 3, 5):
    log.add(corrupt(record))
    row = [
      f"some/set/train/record {record}",
      "corrupt record",
      f"byte {record} is, off",
      corrupt_records.WHAT_TO_DO,
    ]
    if row not in expected:
      expected.append(row)
    assert rows(tmp_path / "run" / "ledger.csv") == expected
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3
  assert lines[0].startswith("warning: some/set/train/record 17 is left out")


def test_a_resumed_run_goes_on_with_its_ledger(tmp_path):
  path = tmp_path / "ledger.csv"
  for record in (1, 2):
    open_log(tmp_path).add(corrupt(record))
  before = path.read_bytes()
  log = open_log(tmp_path)
  log.add(corrupt(2))
  assert path.read_bytes() == before
  # Stopped while a row was being written.
  path.write_bytes(before + b'some/set/train/record 3,"dam')
  log = open_log(tmp_path)
  log.add(corrupt(3))
  log.add(corrupt(4))
  assert [row[0][-1] for row in rows(path)[1:]] == list("1234")
  assert {len(row) for row in rows(path)} == {4}
  assert path.read_bytes().startswith(before)
  assert [p.name for p in tmp_path.iterdir()] == ["ledger.csv"]


def test_processes_have_ledgers_of_their_own(tmp_path):
  for process in range(3):
    log = open_log(tmp_path, process=process)
    log.add(corrupt(process))
  for process, name in enumerate(("ledger", "ledger-1", "ledger-2")):
    (_, row) = rows(tmp_path / f"{name}.csv")
    assert row[0] == f"some/set/train/record {process}"


def test_threads_write_atomic_lines(tmp_path, capsys):
  log = open_log(tmp_path)
  order = np.random.default_rng(0).integers(0, 60, 2000).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda record: log.add(corrupt(record)), order))
  listed = [row[0] for row in rows(tmp_path / "ledger.csv")[1:]]
  assert sorted(listed) == sorted(
    f"some/set/train/record {k}" for k in range(60)
  )
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == corrupt_records.MAX_PRINTED + 1
  assert "ledger.csv alone" in lines[-1]


def test_a_full_disk_does_not_end_the_run(tmp_path, capsys):
  log = open_log(tmp_path / "run")
  (tmp_path / "run").write_text("in the way of the folder")
  log.add(corrupt(1))
  assert "ledger.csv cannot be written" in capsys.readouterr().out
  (tmp_path / "run").unlink()
  log.add(corrupt(2))
  written = rows(tmp_path / "run" / "ledger.csv")
  assert [row[0][-1] for row in written[1:]] == ["1", "2"]


def test_a_bucket_gets_the_whole_file_each_time(tmp_path, monkeypatch):
  """An object is written whole; it cannot be appended to."""
  log = open_log(tmp_path)
  written = []
  monkeypatch.setattr(files, "in_bucket", lambda path: True)
  monkeypatch.setattr(
    type(log.path), "write_bytes", lambda _, data: written.append(data.decode())
  )
  log.add(corrupt(1))
  log.add(corrupt(2))
  assert not log.path.exists()
  for part, whole in itertools.pairwise(written):
    assert whole.startswith(part)
  assert written[-1].count("\n") == 3


def test_samples_are_counted_by_data_set(tmp_path):
  readers = [Reader("a/one"), Reader("a/two"), Reader("b/two"), Reader("a/one")]
  log = open_log(tmp_path, *readers)
  log.count(
    np.array([0, 1, 1, 3, 2]), np.array([True, True, False, True, False])
  )
  log.count(np.array([1, 1]), np.array([True, False]))
  counts = log.counts()
  assert counts["substituted/one"] == 2  # the same folder twice
  two = {k: v for k, v in counts.items() if k.endswith("/two")}
  assert sorted(two.values()) == [0, 2] and len(counts) == 3
  assert all("a/two" in name or "b/two" in name for name in two)


def draw(log, epochs, bad_ones):
  """Batches of one sample, the corrupt ones first in each epoch."""
  for _ in range(epochs):
    for bad in np.arange(100) < bad_ones:
      log.count(np.array([0]), np.array([bad]))


@pytest.mark.parametrize("bad", [0, 1, 10])
def test_no_more_than_the_fraction_never_stops_a_run(tmp_path, bad):
  log = open_log(tmp_path)  # a tenth of 100
  draw(log, 4, bad)
  assert log.counts() == {"substituted/set": 4 * bad}


def test_more_than_the_fraction_stops_it(tmp_path):
  log = open_log(tmp_path)
  message = (
    r"11 of 11 samples of set had .*max_bad_fraction=0\.1 of its 100 clips"
    r".*ledger\.csv.*raise config\.data\.max_bad_fraction"
  )
  with pytest.raises(UserError, match=message):
    draw(log, 1, 11)
  # One too many every epoch is found in the first or second.
  log = open_log(tmp_path, max_bad_fraction=0.01)
  draw(log, 1, 1)
  with pytest.raises(UserError, match="2 of 2 "):
    draw(open_log(tmp_path, max_bad_fraction=0.01), 1, 2)
  with pytest.raises(UserError, match="1 of 1 "):
    draw(open_log(tmp_path, max_bad_fraction=0.0), 1, 1)
  draw(open_log(tmp_path, max_bad_fraction=1.0), 3, 100)


def test_a_small_data_set_of_a_mix_is_not_hidden_by_a_large_one(tmp_path):
  log = open_log(tmp_path, Reader("large", 10_000), Reader("small", 20))
  with pytest.raises(UserError, match="samples of small"):
    for _ in range(3):
      log.count(np.array([0] * 50 + [1]), np.array([False] * 50 + [True]))


def test_chance_does_not_stop_one_process_of_many(tmp_path):
  """64 processes; each reads 1/64 of 6,400 records, other ones each epoch."""
  rng = np.random.default_rng(0)

  def stopped(bad_share):
    logs = [
      open_log(tmp_path, Reader("x", 6400), max_bad_fraction=0.01, share=1 / 64)
      for _ in range(64)
    ]
    bad = np.arange(6400) < bad_share * 6400
    count = 0
    for log, epochs in zip(
      logs,
      zip(*[np.split(rng.permutation(bad), 64) for _ in range(3)], strict=True),
      strict=True,
    ):
      try:
        for samples in epochs:
          log.count(np.zeros(100, int), samples)
      except UserError:
        count += 1
    return count

  assert stopped(0.005) == 0
  assert stopped(0.1) == 64


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_a_fraction_is_one(tmp_path, fraction):
  with pytest.raises(UserError, match=r"max_bad_fraction=.* in \[0, 1\]"):
    open_log(tmp_path, max_bad_fraction=fraction)
