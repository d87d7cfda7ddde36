"""Records: what is written is what is read, by us and by TFDS."""

import concurrent.futures
import dataclasses
import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from calince_jax.data.records import schema, writer
from calince_jax.data.records.reader import ClipReader, read_info
from calince_jax.data.records.schema import DatasetInfo
from calince_jax.errors import UserError


def jpeg(rng):
  pixels = rng.integers(0, 255, (24, 32, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG")
  return file.getvalue()


def make_record(k, split, rng):
  captions = k % 3 + 1
  return {
    "id": f"ünï/{k}",
    "frames": [jpeg(rng) for _ in range(k % 4 + 1)],
    "texts": [f"日本 {k} {i}" for i in range(captions)],
    "pair_indices": [10 * k + i for i in range(captions)],
    "matched": [(1, 0, -1)[i] for i in range(captions)],
    "label": "" if k % 2 else "run",
    "split": split,
    "group": "g",
    "duration": 0.5 * k,
    "width": 32,
    "height": 24,
  }


INFO = DatasetInfo(
  format_version=schema.FORMAT_VERSION,
  name="x",
  frame_rate=8.0,
  short_side=24,
  splits={"train": {"clips": 7, "pairs": 13}, "val": {"clips": 2, "pairs": 3}},
  num_pairs=100,
  labels=["run"],
  manifest_sha256="0",
  settings={"max_frames": 9},
)


@pytest.fixture
def prepared(tmp_path):
  """Returns (folder, records); one shard of train holds nothing."""
  rng = np.random.default_rng(0)
  records = {
    split: [make_record(k, split, rng) for k in range(info["clips"])]
    for split, info in INFO.splits.items()
  }
  parts = {
    "train": [records["train"][:4], [], records["train"][4:]],
    "val": [records["val"]],
  }
  sizes = {}
  for split, shards in parts.items():
    sizes[split] = []
    for i, shard in enumerate(shards):
      path = schema.shard_path(tmp_path, split, i, len(shards))
      size = writer.write_shard(path, iter(shard))
      assert size == path.stat().st_size
      sizes[split].append((len(shard), size))
  writer.write_info(tmp_path, INFO, sizes)
  return tmp_path, records


def test_read_gives_what_was_written(prepared):
  folder, records = prepared
  for split in ("train", "val"):
    reader = ClipReader(folder, split)
    assert len(reader) == len(records[split])
    assert reader.read(range(len(reader))) == records[split]
  order = [6, 0, 3, 3, np.int64(5)]
  got = ClipReader(folder, "train").read(order)
  assert got == [records["train"][i] for i in order]


def test_fields_have_plain_types(prepared):
  record = ClipReader(prepared[0], "train").read([2])[0]
  kinds = {name: type(value) for name, value in record.items()}
  assert kinds == {
    name: type(value) for name, value in prepared[1]["train"][2].items()
  }
  assert {type(i) for i in record["pair_indices"] + record["matched"]} == {int}


def test_many_threads_read_one_reader(prepared):
  folder, records = prepared
  reader = ClipReader(folder, "train")
  order = np.random.default_rng(1).integers(0, 7, (64, 5)).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    results = list(pool.map(reader.read, order))
  assert results == [[records["train"][i] for i in row] for row in order]


def test_tfds_reads_the_folder(prepared):
  folder, records = prepared
  builder = tfds.builder_from_directory(str(folder))
  assert builder.info.splits["train"].num_examples == 7
  source = builder.as_data_source("train")
  for k, record in enumerate(records["train"]):
    example = source[k]
    assert example["id"].decode() == record["id"]
    assert [text.decode() for text in example["texts"]] == record["texts"]
    assert list(example["pair_indices"]) == record["pair_indices"]
    assert example["width"] == 32
    assert len(example["frames"]) == len(record["frames"])
    expected = np.asarray(Image.open(io.BytesIO(record["frames"][0])))
    np.testing.assert_array_equal(example["frames"][0], expected)


def test_equal_records_give_equal_bytes(prepared, tmp_path):
  records = prepared[1]["train"]
  backwards = [dict(reversed(record.items())) for record in records]
  writer.write_shard(tmp_path / "a", records)
  writer.write_shard(tmp_path / "b", backwards)
  assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_shard_appears_whole_or_not_at_all(prepared, tmp_path):
  def records():
    yield prepared[1]["train"][0]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    writer.write_shard(tmp_path / "shard", records())
  assert not [p for p in tmp_path.iterdir() if p.name.startswith("shard")]


def test_a_record_has_all_fields_and_no_other(prepared):
  record = prepared[1]["train"][0]
  with pytest.raises(ValueError, match="extra"):
    schema.encode_record(record | {"extra": 1})
  del record["texts"]
  with pytest.raises(ValueError, match="texts"):
    schema.encode_record(record)


def test_flipped_bits_are_an_error(prepared):
  folder, records = prepared
  path = schema.shard_path(folder, "train", 0, 3)
  data = bytearray(path.read_bytes())
  frame = records["train"][1]["frames"][0]
  position = data.index(frame) + len(frame) // 2
  data[position] ^= 1
  path.write_bytes(data)
  reader = ClipReader(folder, "train")
  with pytest.raises(UserError, match=r"record 1 of split 'train'.*corrupt"):
    reader.read([1])
  assert reader.read([6]) == [records["train"][6]]


def test_info_survives_the_trip(prepared):
  assert read_info(prepared[0]) == INFO


def test_bad_folders_have_clear_errors(prepared, tmp_path_factory):
  folder, _ = prepared
  with pytest.raises(UserError, match="not a prepared data set"):
    read_info(tmp_path_factory.mktemp("empty"))
  with pytest.raises(UserError, match=r"'dev' is unknown.*train.*val"):
    ClipReader(folder, "dev")
  with pytest.raises(IndexError, match="clip 7 of 7"):
    ClipReader(folder, "train").read([7])
  with pytest.raises(IndexError, match="clip -1 of 7"):
    ClipReader(folder, "train").read([-1])
  schema.shard_path(folder, "train", 2, 3).unlink()
  with pytest.raises(UserError, match="00002-of-00003 is missing"):
    ClipReader(folder, "train")
  path = folder / "dataset.json"
  newer = dataclasses.asdict(INFO) | {"format_version": 2}
  for content, words in (
    (json.dumps(newer), "format 2"),
    (json.dumps({"format_version": 1}), "has the keys"),
    ("{", "is damaged"),
    ("[]", "is damaged"),
  ):
    path.write_text(content)
    with pytest.raises(UserError, match=words):
      read_info(folder)
