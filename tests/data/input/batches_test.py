"""The pipelines against plain loops, on one host, many hosts and a mix."""

import io
import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from conftest import PLAIN_SAMPLING
from PIL import Image

from calince_jax.data.input import batches as pipeline
from calince_jax.data.input import frames, label_noise, sampling
from calince_jax.data.records.reader import ClipReader
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError

SAMPLING = replace(PLAIN_SAMPLING, image_size=16, min_crop_area=0.6)
BATCH = 8


@pytest.fixture(scope="module")
def reader(tiny_dataset):
  return ClipReader(tiny_dataset, "train")


@pytest.fixture(scope="module")
def tokenizer(tiny_dataset):
  return Tokenizer(tiny_dataset / "tokenizer.model")


def batches(readers, tokenizer, count, *, rows=None, first_step=0, **changes):
  settings = {
    "weights": [1.0] * len(readers),
    "pair_offsets": [0] * len(readers),
    "sampling": SAMPLING,
    "batch_size": BATCH,
    "rows": np.arange(BATCH) if rows is None else rows,
    "text_length": 10,
    "seed": 0,
    "first_step": first_step,
  }
  made = pipeline.train_batches(
    readers, tokenizer=tokenizer, **(settings | changes)
  )
  return list(itertools.islice(made, count))


@pytest.fixture(scope="module")
def ten(reader, tokenizer):
  """80 positions: two epochs of 40."""
  return batches([reader], tokenizer, 10)


def test_shapes_and_dtypes(ten):
  assert {name: (x.dtype.name, x.shape) for name, x in ten[0].items()} == {
    "video": ("uint8", (BATCH, 4, 16, 16, 3)),
    "text_ids": ("int32", (BATCH, 10)),
    "text_mask": ("bool", (BATCH, 10)),
    "pair_index": ("int32", (BATCH,)),
    "matched": ("int8", (BATCH,)),
  }


def test_each_epoch_reads_every_clip_once_in_another_order(ten):
  clips = np.concatenate([batch["pair_index"] for batch in ten]) // 2
  first, second = clips[:40].tolist(), clips[40:].tolist()
  assert sorted(first) == sorted(second) == list(range(40))
  assert first != second
  assert first != sorted(first)


def test_a_run_that_starts_later_sees_the_same_samples(reader, tokenizer, ten):
  later = batches([reader], tokenizer, 3, first_step=4)
  for a, b in zip(ten[4:7], later, strict=True):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_hold_the_batch_of_one(reader, tokenizer, ten, hosts):
  share = np.split(np.arange(BATCH), hosts)
  parts = [batches([reader], tokenizer, 3, rows=rows) for rows in share]
  for step in range(3):
    for name in ten[step]:
      joined = np.concatenate([part[step][name] for part in parts])
      np.testing.assert_array_equal(joined, ten[step][name])


def test_the_seed_changes_the_samples(reader, tokenizer, ten):
  (other,) = batches([reader], tokenizer, 1, seed=1)
  assert (ten[0]["pair_index"] != other["pair_index"]).any()


def test_texts_belong_to_the_pairs(reader, tokenizer, ten):
  known = {}
  for record in reader.read(range(len(reader))):
    known |= dict(zip(record["pair_indices"], record["texts"], strict=True))
  seen = set()
  for batch in ten:
    ids, mask = tokenizer.encode([known[i] for i in batch["pair_index"]], 10)
    np.testing.assert_array_equal(batch["text_ids"], ids)
    np.testing.assert_array_equal(batch["text_mask"], mask)
    seen |= set(batch["pair_index"].tolist())
  assert len({i % 2 for i in seen}) == 2  # both captions of a clip are used


def test_the_truth_belongs_to_the_pair(reader, ten):
  known = {}
  for record in reader.read(range(len(reader))):
    known |= dict(zip(record["pair_indices"], record["matched"], strict=True))
  pairs = np.concatenate([batch["pair_index"] for batch in ten])
  truth = np.concatenate([batch["matched"] for batch in ten])
  assert truth.tolist() == [known[i] for i in pairs]
  assert set(truth.tolist()) == {0, 1}


@pytest.mark.parametrize(
  "changes",
  [
    {},  # as they are stored
    {"image_size": 24, "flip": "always", "colour_jitter": 0.4},  # another size
    {"min_crop_area": 0.5},
    {"frames": "window", "frame_stride": 2},
  ],
)
def test_kept_in_memory_every_sample_is_the_same(reader, tokenizer, changes):
  fields = {"num_frames": 4, "image_size": 32, "min_crop_area": 1.0} | changes
  settings = {
    "sampling": replace(PLAIN_SAMPLING, **fields),
    "weights": [2.0, 1.0],
    "pair_offsets": [0, 80],
  }
  both = [reader, label_noise.mismatched(reader, 0.5, 0)]
  plain, kept = (
    batches(both, tokenizer, 12, cache=cache, **settings)
    for cache in (False, True)
  )
  for a, b in zip(plain, kept, strict=True):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_kept_in_memory_nothing_is_read_again(reader, tokenizer):
  class Counted:
    def __init__(self):
      self.reads = []  # from several threads

    def __len__(self):
      return len(reader)

    def clip(self, index):
      self.reads.append(index)
      return reader.clip(index)

  counts = {}
  for cache in (False, True):
    counted = Counted()
    batches([counted], tokenizer, 30, cache=cache)  # 240 samples, 6 epochs
    counts[cache] = len(counted.reads)
  assert counts[True] == 40 and counts[False] >= 240


def test_a_picture_of_the_right_size_is_not_resampled(reader):
  jpeg = reader.read([3])[0]["frames"][0]
  box = np.array([0, 4, 32, 32], np.int32)
  (ours,) = frames.decode(tf.constant([jpeg]), box, 32, "bilinear").numpy()
  decoded = tf.io.decode_and_crop_jpeg(jpeg, box, channels=3)
  np.testing.assert_array_equal(ours, decoded)
  # Nor would resampling have changed it.
  resized = tf.image.resize(decoded, [32, 32], antialias=True)
  np.testing.assert_array_equal(ours, resized)


def test_a_larger_picture_is_reduced_by_the_decoder_and_stays_near():
  """Smooth pictures, at each reduction; both ways near a Lanczos filter."""
  y, x = np.mgrid[:256, :320] / 40
  waves = [np.sin(x + c) * np.cos(y - c) for c in range(3)]
  picture = np.uint8(127.5 + 100 * np.stack(waves, -1))
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "JPEG", quality=95, subsampling=0)
  jpegs, box = tf.constant([file.getvalue()]), np.array([0, 32, 256, 256])
  for size in (240, 150, 80, 40, 20):
    expected = Image.fromarray(picture).resize(
      (size, size), Image.Resampling.LANCZOS, box=(32, 0, 288, 256)
    )
    for resize in sampling.RESIZES:
      (got,) = frames.decode(
        jpegs, tf.constant(box, tf.int32), size, resize
      ).numpy()
      wrong = np.abs(got.astype(int) - np.asarray(expected, int))
      assert wrong.mean() < 1.5, (size, resize)


def test_what_is_finer_than_the_picture_becomes_grey():
  """Stripes of one pixel, which plain bilinear steps turn into a moire."""
  stripes = np.uint8(255 * (np.arange(512) % 2))
  picture = np.broadcast_to(stripes[None, :, None], (512, 512, 3))
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "JPEG", quality=95, subsampling=0)
  jpegs = tf.constant([file.getvalue()])
  box = tf.constant([0, 0, 512, 512])
  for size in (290, 140, 70):
    for resize in sampling.RESIZES:
      (got,) = frames.decode(jpegs, box, size, resize).numpy()
      assert got[4:-4, 4:-4].std() < 13, (size, resize)
    plain = tf.image.resize(picture[None], [size, size]).numpy()[0]
    assert plain.std() > 30


def test_pictures_equal_a_plain_decoder(reader, tokenizer):
  whole = replace(PLAIN_SAMPLING, image_size=32, min_crop_area=1.0)
  (batch,) = batches([reader], tokenizer, 1, sampling=whole)
  for p in range(BATCH):
    record = reader.read([batch["pair_index"][p] // 2])[0]
    rng = sampling.generator(0, p)
    rng.integers(len(record["texts"]))
    frames = sampling.sample_frames(whole, 8, rng)
    for t, frame in enumerate(frames):
      picture = Image.open(io.BytesIO(record["frames"][frame]))
      picture = np.asarray(picture.crop((4, 0, 36, 32)), np.int32)
      got = batch["video"][p, t].astype(np.int32)
      # Decoders may differ in how they round and upsample colour.
      assert np.abs(got - picture).mean() < 2.0


def test_flip_mirrors_some_clips(reader, tokenizer):
  plain = replace(PLAIN_SAMPLING, image_size=32, min_crop_area=1.0)
  flip = replace(
    PLAIN_SAMPLING, image_size=32, min_crop_area=1.0, flip="always"
  )
  (a,) = batches([reader], tokenizer, 1, sampling=plain)
  (b,) = batches([reader], tokenizer, 1, sampling=flip)
  same = [(x == y).all() for x, y in zip(a["video"], b["video"], strict=True)]
  mirrored = [
    (x == y[:, :, ::-1]).all()
    for x, y in zip(a["video"], b["video"], strict=True)
  ]
  assert any(same) and any(mirrored)
  assert all(s or m for s, m in zip(same, mirrored, strict=True))


def test_a_mix_tells_its_data_sets_apart(reader, tokenizer):
  made = batches(
    [reader, reader],
    tokenizer,
    16,
    weights=[3.0, 1.0],
    pair_offsets=[0, 1000],
  )
  pairs = np.concatenate([batch["pair_index"] for batch in made])
  assert abs((pairs >= 1000).mean() - 0.25) < 0.05
  first = pairs[pairs < 1000][:40]
  assert sorted(first // 2) == list(range(40))


def test_evaluation_reads_every_clip_in_order_and_fills_up(tiny_dataset):
  reader = ClipReader(tiny_dataset, "test")  # 12 clips
  batches = pipeline.eval_batches(reader, SAMPLING, batch_size=8)
  for _ in range(2):  # as often as wanted
    made = list(batches)
    records = np.concatenate([batch["record"] for batch in made])
    assert records.tolist() == [*range(12), -1, -1, -1, -1]
    assert made[1]["video"].shape == (8, 4, 16, 16, 3)


def test_evaluation_reads_in_another_order(tiny_dataset):
  reader = ClipReader(tiny_dataset, "test")
  order = np.random.default_rng(0).permutation(12)
  plain, other = (
    list(pipeline.eval_batches(reader, SAMPLING, batch_size=8, order=o))
    for o in (None, order)
  )
  join = {
    name: np.concatenate([batch[name] for batch in plain])[:12]
    for name in plain[0]
  }
  assert other[1]["record"].tolist() == [*order[8:], -1, -1, -1, -1]
  for name, values in join.items():
    np.testing.assert_array_equal(other[0][name], values[order[:8]])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_evaluate_what_one_does(tiny_dataset, hosts):
  reader = ClipReader(tiny_dataset, "test")  # 12 clips, batches of 8
  whole = list(pipeline.eval_batches(reader, SAMPLING, batch_size=8))
  parts = [
    list(pipeline.eval_batches(reader, SAMPLING, batch_size=8, rows=rows))
    for rows in np.split(np.arange(8), hosts)
  ]
  assert len(whole) == 2
  for step, batch in enumerate(whole):
    for name in batch:
      joined = np.concatenate([part[step][name] for part in parts])
      np.testing.assert_array_equal(joined, batch[name])


def test_evaluation_views(tiny_dataset):
  reader = ClipReader(tiny_dataset, "test")
  made = list(
    pipeline.eval_batches(
      reader, SAMPLING, batch_size=6, num_clips=2, num_crops=3
    )
  )
  assert [set(batch["record"]) for batch in made] == [{i} for i in range(12)]
  views = made[0]["video"]
  different = {view.tobytes() for view in views}
  assert len(different) == 6


def test_a_corrupt_record_is_named(tiny_dataset, tokenizer, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(tiny_dataset, broken)
  shard = next(broken.glob("clips-train*"))
  data = bytearray(shard.read_bytes())
  for place in range(len(data) // 3, len(data) // 2, 97):
    data[place] ^= 0xFF
  shard.write_bytes(data)
  with pytest.raises(
    UserError, match=r"record \d+ of split 'train'.* run prepare again"
  ):
    batches([ClipReader(broken, "train")], tokenizer, 10)
