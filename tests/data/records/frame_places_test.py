"""A frame that is read alone is the frame of the record, or an error."""

import shutil

import numpy as np
import pytest

from calince_jax.data.problems import CorruptRecord
from calince_jax.data.records import frame_places, schema, writer
from calince_jax.data.records.reader import ClipReader
from calince_jax.errors import UserError

# Frames within a block of 64 KiB, across its end, and longer than two.
SIZES = ([1, 9_000], [40_000, 40_000, 3], [200_000], [65_512, 65_536, 65_560])


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
  """Returns (path, records): frames of random bytes, two of them equal."""
  rng = np.random.default_rng(0)
  records = []
  for k, sizes in enumerate(SIZES * 3):
    frames = [rng.bytes(size) for size in sizes]
    records.append(
      {
        "id": f"clip {k}",
        "frames": [*frames, frames[0]],
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
    )
  path = tmp_path_factory.mktemp("shard") / "clips"
  writer.write_shard(path, records)
  return path, records


def places_in(path, records):
  written = []
  for record in records:
    data = schema.encode_record(record)
    relative = frame_places.relative_places(data, record["frames"])
    written.append((data[: frame_places.PREFIX], relative))
  return frame_places.absolute_places(path, written)


def test_every_frame_is_found_where_it_lies(shard):
  path, records = shard
  places = places_in(path, records)
  assert [len(one) for one in places] == [len(r["frames"]) for r in records]
  for record, one in zip(records, places, strict=True):
    assert frame_places.read_frames(path, one) == record["frames"]
    assert frame_places.read_frames(path, one[::-1]) == record["frames"][::-1]


def test_whatever_is_flipped_a_frame_is_right_or_an_error(shard, tmp_path):
  path, records = shard
  places = places_in(path, records)
  rng, data = np.random.default_rng(1), path.read_bytes()
  wrong = 0
  for _ in range(60):
    bad = bytearray(data)
    for position in rng.integers(0, len(data), 3):
      bad[position] ^= 1 << int(rng.integers(8))
    (tmp_path / "bad").write_bytes(bad)
    for record, one in zip(records, places, strict=True):
      for frame, place in zip(record["frames"], one, strict=True):
        try:
          (got,) = frame_places.read_frames(tmp_path / "bad", place[None])
          assert got == frame
        except ValueError as error:
          assert "checksum of a frame" in str(error)
          wrong += 1
  assert 60 < wrong < 300  # nearly every flipped bit is in one frame
  (tmp_path / "bad").write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match="checksum of a frame"):
    frame_places.read_frames(tmp_path / "bad", places[-1])


def test_what_is_not_laid_out_so_is_not_written(shard, tmp_path):
  path, records = shard
  (tmp_path / "other").write_bytes(bytes(100) + path.read_bytes()[24:])
  with pytest.raises((RuntimeError, ValueError)):
    places_in(tmp_path / "other", records)


def test_a_clip_without_and_with_its_heads_is_the_same(tiny_dataset, tmp_path):
  older = tmp_path / "older"
  shutil.copytree(tiny_dataset, older)
  for path in older.glob("*.heads"):
    path.unlink()
  new, old = ClipReader(tiny_dataset, "train"), ClipReader(older, "train")
  chosen = np.array([6, 1, 1])
  for index in (0, 17, 39):
    (record,) = new.read([index])
    expected = [record["frames"][t] for t in chosen]
    for reader in (new, old):
      head, frames = reader.clip(index)
      assert len(frames) == 8 and frames[chosen].tolist() == expected
      assert head == {k: v for k, v in record.items() if k != "frames"}
  for reader in (new, old):
    with pytest.raises(IndexError):
      reader.clip(40)


def test_heads_that_are_damaged_or_left_out_are_an_error(
  tiny_dataset, tmp_path
):
  folder = tmp_path / "set"
  shutil.copytree(tiny_dataset, folder)
  path = frame_places.heads_path(schema.shard_path(folder, "train", 0, 1))
  data = bytearray(path.read_bytes())
  for position in range(200, 12_000, 50):
    data[position] ^= 1
  path.write_bytes(data)
  with pytest.raises(CorruptRecord):
    ClipReader(folder, "train").clip(3)
  path.write_bytes(b"")
  with pytest.raises((CorruptRecord, UserError)):
    ClipReader(folder, "train").clip(3)
