"""Corrupt records in training, against a plain loop over positions.

A record that fails its checksum is substituted; which record takes its place
depends on the seed and the position alone. A frame that does not decode, in a
record whose checksum is right, is an error.
"""

import csv
import functools
import io
import itertools
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import tensorflow as tf
from conftest import PLAIN_SAMPLING, tiny_config
from PIL import Image

from calince_jax.data.input import batches as pipeline
from calince_jax.data.input import frames as frames_lib
from calince_jax.data.input import label_noise, sampling
from calince_jax.data.input.corrupt_records import CorruptRecordLog
from calince_jax.data.problems import CorruptRecord
from calince_jax.data.records import frame_places, schema, writer
from calince_jax.data.records.reader import ClipReader
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.errors import UserError
from calince_jax.runtime import sharding
from calince_jax.training import setup

CROPS = replace(PLAIN_SAMPLING, image_size=16, min_crop_area=0.6)
CENTRE = replace(PLAIN_SAMPLING, image_size=24, min_crop_area=1.0)
B, SEED, CLIPS = 8, 5, 40
FLIPPED = (4, 11, 12, 30)  # records of `rotten` with a flipped bit


def copy_of(folder, target):
  shutil.copytree(folder, target)
  return target


def flip_frames(data, reader, record, frames):
  """Flips a bit of each of the frames, in the bytes of the shard."""
  head = schema.decode_record(reader._heads.read(record))
  for position, length, _ in frame_places.places_of(head)[list(frames)]:
    data[frame_places.forward(position, length // 2)] ^= 4


@pytest.fixture(scope="module")
def rotten(tiny_dataset, tmp_path_factory):
  """The tiny data set after some bits of its training split have flipped."""
  folder = copy_of(tiny_dataset, tmp_path_factory.mktemp("rotten") / "set")
  path = schema.shard_path(folder, "train", 0, 1)
  reader = ClipReader(tiny_dataset, "train")
  data = bytearray(path.read_bytes())
  for record in FLIPPED:
    flip_frames(data, reader, record, range(8))
  path.write_bytes(data)
  return folder


def jpeg(size):
  file = io.BytesIO()
  Image.new("RGB", size, "red").save(file, "JPEG")
  return file.getvalue()


@pytest.fixture(scope="module")
def foreign(tiny_dataset, tmp_path_factory):
  """The tiny data set as a bad writer would make it: frames do not decode.

  Of clip 5 no frame does, of clip 11 the fourth is cut off, of clip 17 all are
  smaller than it says, of clip 22 the last two are.
  """
  folder = copy_of(tiny_dataset, tmp_path_factory.mktemp("foreign") / "set")
  records = ClipReader(tiny_dataset, "train").read(range(CLIPS))
  records[5]["frames"] = [b"no picture"] * 8
  records[11]["frames"][3] = records[11]["frames"][3][:300]
  records[17]["frames"] = [jpeg((20, 16))] * 8
  records[22]["frames"][6:] = [jpeg((20, 16))] * 2
  path = schema.shard_path(folder, "train", 0, 1)
  writer.write_shard(path, records)
  return folder


class NoLog:
  """Allows any number of corrupt records, and remembers them."""

  def __init__(self):
    self.records, self.data_sets, self.substituted = set(), [], []

  def add(self, error):
    self.records.add(error.record)

  def count(self, data_sets, substituted):
    self.data_sets += data_sets.tolist()
    self.substituted += substituted.tolist()


def batches(readers, count, *, first_step=0, **changes):
  tokenizer = Tokenizer(f"{readers[0].directory}/tokenizer.model")
  settings = {
    "weights": [1.0] * len(readers),
    "pair_offsets": [1000 * d for d in range(len(readers))],
    "sampling": CROPS,
    "batch_size": B,
    "rows": np.arange(B),
    "text_length": 10,
    "seed": SEED,
    "first_step": first_step,
    "corrupt_records": NoLog(),
  }
  made = pipeline.train_batches(
    readers, tokenizer=tokenizer, **(settings | changes)
  )
  return list(itertools.islice(made, count))


def assert_same(some, others):
  assert len(some) == len(others)
  for a, b in zip(some, others, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def records_of(tiny_dataset, count, **changes):
  """Which records the positions of healthy batches are of."""
  made = batches([ClipReader(tiny_dataset, "train")], count, **changes)
  return np.concatenate([batch["pair_index"] for batch in made]) // 2


def in_turn(p, own):
  """The record of position p, and then its substitutes."""
  key = np.random.Philox(key=[SEED, p], counter=[0, 0, 0, 1])
  return [own, *np.random.Generator(key).integers(CLIPS, size=100).tolist()]


def plain_draw(p, record, settings):
  """Caption, frames and crop of position p, if it is of this record."""
  rng = sampling.generator(SEED, p)
  caption = rng.integers(len(record["texts"]))
  frames = sampling.sample_frames(settings, len(record["frames"]), rng)
  box = sampling.sample_crop(settings, record["width"], record["height"], rng)
  return caption, frames, box


def plain_samples(reader, own, settings):
  """[(pair, matched, video)] of the positions 0 ... as a loop over records."""
  made = []
  for p, first in enumerate(own.tolist()):
    for index in in_turn(p, first):
      try:
        (record,) = reader.read([index])
      except CorruptRecord:
        continue
      caption, frames, box = plain_draw(p, record, settings)
      jpegs = tf.constant([record["frames"][t] for t in frames])
      size, resize = settings.image_size, settings.resize
      video = frames_lib.decode(jpegs, box, size, resize).numpy()
      pair, matched = record["pair_indices"], record["matched"]
      made.append((index != first, pair[caption], matched[caption], video))
      break
  assert len(made) == len(own)
  return made


def assert_samples(made, expected):
  for name, column in (("pair_index", 1), ("matched", 2), ("video", 3)):
    got = np.concatenate([batch[name] for batch in made])
    np.testing.assert_array_equal(got, [row[column] for row in expected])


def test_the_substitutes_are_a_stream_of_their_own():
  for p in (0, 1, 10**12):
    (own, *others) = in_turn(p, 0)
    assert list(sampling.substitutes(SEED, p, CLIPS)) == others
    sample = sampling.generator(SEED, p).integers(CLIPS, size=100).tolist()
    assert others != sample and own == 0
  assert set(sampling.substitutes(SEED, 3, 2)) == {0, 1}


@pytest.mark.parametrize("cache", [False, True])
def test_a_corrupt_record_is_substituted_and_no_other(
  tiny_dataset, rotten, cache
):
  log = NoLog()
  reader = ClipReader(rotten, "train")
  made = batches([reader], 10, cache=cache, corrupt_records=log)
  own = records_of(tiny_dataset, 10)
  expected = plain_samples(reader, own, CROPS)
  assert_samples(made, expected)
  bad = np.isin(own, FLIPPED)
  assert bad.sum() == 8  # two epochs
  assert log.records == set(FLIPPED)
  assert log.substituted == bad.tolist() == [row[0] for row in expected]
  # Texts are the substitute's, and what is healthy is as it was.
  whole = batches([ClipReader(tiny_dataset, "train")], 10)
  for name in whole[0]:
    was = np.concatenate([batch[name] for batch in whole])
    now = np.concatenate([batch[name] for batch in made])
    np.testing.assert_array_equal(was[~bad], now[~bad])
  tokenizer = Tokenizer(rotten / "tokenizer.model")
  for batch in made:
    texts = [
      reader.read([pair // 2])[0]["texts"][pair % 2]
      for pair in batch["pair_index"]
    ]
    ids, mask = tokenizer.encode(texts, 10)
    np.testing.assert_array_equal(batch["text_ids"], ids)
    np.testing.assert_array_equal(batch["text_mask"], mask)


def test_only_the_frames_that_are_sampled_are_read(tiny_dataset, tmp_path):
  folder = copy_of(tiny_dataset, tmp_path / "set")
  path = schema.shard_path(folder, "train", 0, 1)
  healthy, data = (
    ClipReader(tiny_dataset, "train"),
    bytearray(path.read_bytes()),
  )
  for record in range(0, CLIPS, 2):
    flip_frames(data, healthy, record, [0])
  path.write_bytes(data)
  log = NoLog()
  made = batches([ClipReader(folder, "train")], 5, corrupt_records=log)
  own = records_of(tiny_dataset, 5)
  lost = []
  for p, index in enumerate(own.tolist()):
    (record,) = healthy.read([index])
    lost.append(index % 2 == 0 and 0 in plain_draw(p, record, CROPS)[1])
  assert log.substituted == lost
  assert 0 < sum(lost) < (own % 2 == 0).sum()
  whole = np.concatenate([b["video"] for b in batches([healthy], 5)])
  video = np.concatenate([batch["video"] for batch in made])
  kept = ~np.array(lost)
  np.testing.assert_array_equal(video[kept], whole[kept])


def test_neither_hosts_nor_resuming_nor_the_past_matter(rotten):
  reader = ClipReader(rotten, "train")
  whole = batches([reader], 10)
  assert_same(whole, batches([reader], 10))
  for first in (1, 8):
    later = batches([reader], 10 - first, first_step=first)
    assert_same(later, whole[first:])
  parts = [
    batches([ClipReader(rotten, "train")], 10, rows=rows)
    for rows in (np.array([0, 3, 6]), np.array([1, 2, 4, 5, 7]))
  ]
  for step, batch in enumerate(whole):
    for name, value in batch.items():
      joined = np.empty_like(value)
      joined[[0, 3, 6]] = parts[0][step][name]
      joined[[1, 2, 4, 5, 7]] = parts[1][step][name]
      np.testing.assert_array_equal(joined, value)


def decodes(jpeg, box, settings):
  try:
    size, resize = settings.image_size, settings.resize
    frames_lib.decode(tf.constant([jpeg]), box, size, resize)
  except tf.errors.InvalidArgumentError:
    return False
  return True


def first_undecodable(reader, own, settings):
  """(position, record, frame) of the first that a loop cannot decode."""
  for p, index in enumerate(own.tolist()):
    (record,) = reader.read([index])
    _, frames, box = plain_draw(p, record, settings)
    for t in frames:
      if not decodes(record["frames"][t], box, settings):
        return p, index, t


def message(folder, record, frame):
  """What is said of a frame that does not decode."""
  return (
    rf"^frame {frame} of record {record} \(clip 'train-{record}'\) of split"
    rf" 'train' in {folder} does not decode .* run prepare again$"
  )


@pytest.mark.parametrize("cache", [False, True])
def test_a_frame_that_does_not_decode_is_an_error(tiny_dataset, foreign, cache):
  reader = ClipReader(foreign, "train")
  own = records_of(tiny_dataset, 10)
  p, record, frame = first_undecodable(reader, own, CROPS)
  assert p >= B  # there are batches before it
  log = NoLog()
  before = batches([reader], p // B, cache=cache, corrupt_records=log)
  assert_same(before, batches([ClipReader(tiny_dataset, "train")], p // B))
  with pytest.raises(UserError, match=message(foreign, record, frame)) as error:
    batches([reader], p // B + 1, cache=cache, corrupt_records=log)
  assert not isinstance(error.value, CorruptRecord)
  assert not log.records and not any(log.substituted)


def test_where_the_cache_decodes_the_error_comes_first(foreign):
  with pytest.raises(UserError, match=message(foreign, 5, 0)):
    batches([ClipReader(foreign, "train")], 0, sampling=CENTRE, cache=True)


@pytest.mark.parametrize("clip, frame", [(5, 0), (11, 3), (17, 0), (22, 6)])
def test_the_frame_that_does_not_decode_is_named(foreign, clip, frame):
  (record,) = ClipReader(foreign, "train").read([clip])
  box = np.array([0, 8, 32, 32], np.int32)
  check = functools.partial(frames_lib.check, "a clip", record["frames"])
  with pytest.raises(UserError, match=f"^frame {frame} of a clip does not"):
    check(range(8), box, 24, "bilinear")
  check(range(frame), box, 24, "bilinear")
  (healthy,) = ClipReader(foreign, "train").read([clip + 1])
  frames_lib.check(
    *("a clip", healthy["frames"], range(8), box, 24, "bilinear")
  )


def test_a_mix_takes_its_substitutes_from_the_same_data_set(
  tiny_dataset, rotten
):
  readers = [ClipReader(rotten, "train"), ClipReader(tiny_dataset, "train")]
  log = NoLog()
  made = batches(readers, 15, weights=[2.0, 1.0], corrupt_records=log)
  pairs = np.concatenate([batch["pair_index"] for batch in made])
  data_set = (pairs >= 1000).astype(int)
  assert log.data_sets == data_set.tolist()
  assert not np.isin(pairs[data_set == 0] // 2, FLIPPED).any()
  assert set(FLIPPED) & set((pairs[data_set == 1] - 1000) // 2)
  replaced = np.array(log.substituted)
  assert (
    replaced[data_set == 0].sum() == 8 and not replaced[data_set == 1].any()
  )


def test_the_texts_of_a_corrupt_record_make_their_clip_corrupt(rotten):
  reader = label_noise.mismatched(ClipReader(rotten, "train"), 0.6, 0)
  assert (reader.directory, reader.split) == (str(rotten), "train")
  faults = {}
  for index in range(CLIPS):
    try:
      reader.read([index])
    except CorruptRecord as error:
      assert error.record == index
      faults[index] = error.reason
  partners = {
    index: [k for k in FLIPPED if f"the texts of record {k}," in reason]
    for index, reason in faults.items()
    if index not in FLIPPED
  }
  assert partners and all(len(of) == 1 for of in partners.values())
  log = NoLog()
  made = batches([reader], 5, corrupt_records=log)
  assert log.records == set(faults) and sum(log.substituted) == len(faults)
  for batch in made:
    assert not set(batch["pair_index"] // 2) & set(faults)


def test_without_a_log_the_first_corrupt_record_ends_it(rotten):
  match = "record (4|11|12|30) of split 'train'"
  with pytest.raises(CorruptRecord, match=match):
    batches([ClipReader(rotten, "train")], 5, corrupt_records=None)


def test_what_no_sample_explains_is_raised(tiny_dataset, monkeypatch):
  finish = pipeline.TrainSamples.finish

  def fail(self, frames, box, *rest):
    with tf.control_dependencies([tf.debugging.assert_less(box[2], 0)]):
      return finish(self, frames, tf.identity(box), *rest)

  monkeypatch.setattr(pipeline.TrainSamples, "finish", fail)
  with pytest.raises(UserError, match="a batch cannot be made: .*asser"):
    batches([ClipReader(tiny_dataset, "train")], 1)


def test_a_data_set_without_any_record_left_is_an_end(tiny_dataset, tmp_path):
  folder = copy_of(tiny_dataset, tmp_path / "set")
  path = schema.shard_path(folder, "train", 0, 1)
  path.write_bytes(bytes(path.stat().st_size))
  with pytest.raises(UserError, match="taken at random, are all corrupt"):
    batches([ClipReader(folder, "train")], 1)


def test_a_run_lists_counts_and_stops(rotten, tmp_path):
  mesh = sharding.make_mesh(jax.devices())

  def run(fraction, steps):
    changes = {"data.max_bad_fraction": fraction}
    config = tiny_config(rotten, changes=changes).to_dict()
    data = setup.open_data(config)
    log = setup.open_corrupt_record_log(config, str(tmp_path), data, mesh)
    assert isinstance(log, CorruptRecordLog)
    made = setup.train_batches(config, data, mesh, 0, log)
    assert len(list(itertools.islice(made, steps))) == steps
    return log.counts()

  assert run(0.1, 10) == {"substituted/set": 16}  # four epochs
  with open(tmp_path / "ledger.csv", newline="") as file:
    (_, *rows) = csv.reader(file)
  assert {row[0] for row in rows} == {
    f"{rotten}/train/record {k}" for k in FLIPPED
  }
  assert all("checksum of a frame" in row[2] for row in rows)
  with pytest.raises(UserError, match=r"max_bad_fraction=0.05 of its 40 clips"):
    run(0.05, 10)
  with open(tmp_path / "ledger.csv", newline="") as file:
    assert list(csv.reader(file))[1:] == rows


@pytest.mark.parametrize("kind, first", [("rotten", 4), ("foreign", 5)])
def test_evaluation_takes_no_substitute(kind, first, request):
  folder = request.getfixturevalue(kind)
  reader = ClipReader(folder, "train")
  made = pipeline.eval_batches(reader, CENTRE, batch_size=first)
  with pytest.raises(UserError) as error:
    for batch in made:
      assert max(batch["record"]) < first
  assert isinstance(error.value, CorruptRecord) == (kind == "rotten")
  if kind == "rotten":
    assert error.value.record == first
  else:
    assert re.match(message(folder, first, 1), str(error.value))
