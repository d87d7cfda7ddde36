"""shard_reader: a record is what was written, or an error; nothing is imported.

What is flipped, cut and swapped here are real files.
"""

import concurrent.futures
import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from calince_jax.data.problems import CorruptRecord
from calince_jax.data.records import schema, shard_reader, writer
from calince_jax.data.records.reader import ClipReader
from calince_jax.data.records.shard_reader import BadShard, ShardFiles
from calince_jax.errors import UserError

LENGTH = 20  # records of the shard


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
  """Returns (path, its records as bytes): three blocks of 64 KiB and more."""
  rng = np.random.default_rng(0)
  records = [
    {
      "id": f"clip {k}",
      "frames": [rng.bytes(int(rng.integers(1, 9000))) for _ in range(2)],
      "texts": [f"caption {k}"],
      "pair_indices": [k],
      "matched": [-1],
      "label": "",
      "split": "train",
      "group": "",
      "duration": 1.0,
      "width": 32,
      "height": 24,
    }
    for k in range(LENGTH)
  ]
  path = tmp_path_factory.mktemp("shard") / "clips"
  writer.write_shard(path, records)
  return path, [schema.encode_record(record) for record in records]


def opened(path, length=LENGTH):
  return ShardFiles([path], [length], path.stat().st_size)


def read_or_none(files, index):
  try:
    return files.read(index)
  except BadShard:
    return None


def flipped(source, target, positions, rng):
  data = bytearray(source.read_bytes())
  for position in positions:
    data[position] ^= 1 << int(rng.integers(8))
  target.write_bytes(data)
  return target


def test_whatever_is_flipped_a_record_is_right_or_an_error(shard, tmp_path):
  path, records = shard
  size = path.stat().st_size
  rng = np.random.default_rng(1)
  right = wrong = 0
  for trial in range(150):
    count = 1 if trial % 3 == 0 else int(rng.integers(2, 201))
    bad = flipped(path, tmp_path / "bad", rng.integers(0, size, count), rng)
    files = opened(bad)
    for index in rng.permutation(LENGTH).tolist():
      got = read_or_none(files, index)
      assert got is None or got == records[index], (trial, index)
      right += got is not None
      wrong += got is None
  assert right > 500 and wrong > 500


def test_every_byte_of_a_record_is_watched(shard, tmp_path):
  path, records = shard
  data = path.read_bytes()
  rng = np.random.default_rng(2)
  whole = [k for k, record in enumerate(records) if record in data]
  assert len(whole) >= LENGTH // 2  # the others lie across two blocks
  for k in whole:
    start, size = data.index(records[k]), len(records[k])
    for place in [0, size - 1, *rng.integers(0, size, 8).tolist()]:
      bad = flipped(path, tmp_path / "bad", [start + place], rng)
      with pytest.raises(BadShard, match="hash mismatch"):
        opened(bad).read(k)


def test_the_other_records_of_a_shard_survive(shard, tmp_path):
  path, records = shard
  data = path.read_bytes()
  rng = np.random.default_rng(3)
  lost = [k for k in (2, 3, 9, 17) if records[k] in data]
  assert len(lost) >= 2
  places = [data.index(records[k]) + len(records[k]) // 2 for k in lost]
  files = opened(flipped(path, tmp_path / "bad", places, rng))
  expected = [None if k in lost else r for k, r in enumerate(records)]
  for _ in range(3):  # also after an error
    assert [read_or_none(files, k) for k in range(LENGTH)] == expected
  order = rng.integers(0, LENGTH, 2000).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    got = list(pool.map(lambda k: read_or_none(files, k), order))
  assert got == [expected[k] for k in order]


@pytest.mark.parametrize("cut", [0, 1000, 65536, 70000, 131072, -65536, -1])
def test_a_shard_that_is_cut_off_is_refused_at_once(shard, tmp_path, cut):
  data = shard[0].read_bytes()
  bad = tmp_path / "bad"
  bad.write_bytes(data[:cut])
  with pytest.raises(UserError, match=r"bad, of \d+ bytes, is not as it was"):
    ShardFiles([bad], [LENGTH], len(data))


def test_a_shard_without_its_index_is_all_corrupt(shard, tmp_path):
  path, records = shard
  data = bytearray(path.read_bytes())
  end = len(data) - 65536
  data[end : end + 64] = bytes(64)
  (tmp_path / "bad").write_bytes(data)
  lengths, size = [LENGTH, LENGTH], 2 * len(data)
  files = ShardFiles([tmp_path / "bad", path], lengths, size)
  for k in range(LENGTH):
    with pytest.raises(BadShard, match="its shard bad cannot be opened"):
      files.read(k)
    assert files.read(LENGTH + k) == records[k]
  # Mended while the run goes on, it is read.
  shutil.copy(path, tmp_path / "bad")
  assert files.read(3) == records[3]


def test_another_shard_under_the_name_is_an_error(shard):
  with pytest.raises(BadShard, match="holds 20 records, not 21"):
    opened(shard[0], LENGTH + 1).read(0)
  with pytest.raises(UserError, match="holds 20 records, not 21"):
    ShardFiles([shard[0]], [LENGTH + 1], 1)


def test_bytes_that_are_no_record_are_corrupt(tiny_dataset, tmp_path):
  folder = tmp_path / "foreign"
  shutil.copytree(tiny_dataset, folder)
  good = ClipReader(tiny_dataset, "test").read(range(12))
  changes = [
    {"texts": [], "pair_indices": [], "matched": []},
    {"frames": []},
    {"pair_indices": [1, 2, 3]},
    {"width": 0},
  ]
  records = [r | c for r, c in zip(good, changes, strict=False)] + good[4:]
  path = schema.shard_path(folder, "test", 0, 1)
  writer.write_shard(path, records)
  reader = ClipReader(folder, "test")
  for k in range(4):
    with pytest.raises(CorruptRecord, match=f"record {k} of split 'test' in"):
      reader.read([k])
  assert reader.read(range(4, 12)) == good[4:]
  for data in (b"\xff\xff\xff", b"", b"\x0a\x00"):
    with pytest.raises(ValueError, match="no record of a clip"):
      schema.decode_record(data)


def test_a_corrupt_record_says_which_and_why(tiny_dataset, tmp_path):
  folder = tmp_path / "broken"
  shutil.copytree(tiny_dataset, folder)
  path = schema.shard_path(folder, "train", 0, 1)
  frame = ClipReader(folder, "train").read([7])[0]["frames"][0]
  place = path.read_bytes().index(frame) + 100
  flipped(path, path, [place], np.random.default_rng(4))
  with pytest.raises(CorruptRecord) as raised:
    ClipReader(folder, "train").read([6, 7])
  error = raised.value
  assert (error.directory, error.split, error.record) == (
    str(folder),
    "train",
    7,
  )
  assert "chunk data hash mismatch" in error.reason
  assert "\n" not in str(error) and "run prepare again" in str(error)


@pytest.mark.parametrize(
  "content",
  [
    None,
    "",
    "{",
    "[]",
    "[" * 100_000,
    '{"splits": {}}',
    '{"splits": [1]}',
    '{"splits": [{"name": "test"}]}',
    '{"splits": [{"name": "train", "numBytes": "9"}]}',
    '{"splits": [{"name": "train", "numBytes": "9", "shardLengths": []}]}',
    '{"splits": [{"name": "train", "numBytes": "9", "shardLengths": ["a"]}]}',
    '{"splits": [{"name": "train", "numBytes": "9", "shardLengths": [-1]}]}',
    '{"splits": [{"name": "train", "numBytes": "9", "shardLengths": [1e999]}]}',
  ],
)
def test_a_bad_dataset_info_is_an_error(tiny_dataset, tmp_path, content):
  shutil.copytree(tiny_dataset, tmp_path / "set")
  path = tmp_path / "set" / "dataset_info.json"
  path.unlink() if content is None else path.write_text(content)
  with pytest.raises(UserError, match=r"dataset_info.json does not say"):
    ClipReader(tmp_path / "set", "train")


def test_lengths_are_those_that_tfds_reads(tiny_dataset):
  splits = tfds.builder_from_directory(str(tiny_dataset)).info.splits
  for name, split in splits.items():
    lengths, size = shard_reader.read_lengths(tiny_dataset, name)
    assert (lengths, size) == (split.shard_lengths, split.num_bytes)


def test_opening_a_folder_imports_nothing_that_it_names(
  tiny_dataset, tmp_path, monkeypatch
):
  folder = tmp_path / "hostile"
  shutil.copytree(tiny_dataset, folder)
  (tmp_path / "named_in_a_data_set.py").write_text("LOADED = True\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  path = folder / "features.json"
  features = json.loads(path.read_text())
  features["pythonClassName"] = "named_in_a_data_set.Features"
  path.write_text(json.dumps(features))
  reader = ClipReader(folder, "train")
  assert reader.read([0]) == ClipReader(tiny_dataset, "train").read([0])
  assert "named_in_a_data_set" not in sys.modules
  # TFDS would have done it.
  with pytest.raises(Exception):  # noqa: B017
    tfds.builder_from_directory(str(folder)).info.features  # noqa: B018
  assert sys.modules.pop("named_in_a_data_set").LOADED
