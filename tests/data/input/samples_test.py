"""Damaged data in training: substitutes against a plain loop over positions.

A record is damaged on disk (a bit flips) or was never a picture (a foreign
writer); what stands in its place depends on the seed and the position alone.
"""

import csv
import io
import itertools
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import tensorflow as tf
from conftest import PLAIN_SAMPLING, tiny_config
from PIL import Image

from calince_jax.data.input import batches as pipeline
from calince_jax.data.input import clip_cache, label_noise, sampling
from calince_jax.data.input.corrupt_records import DamagedRecord, DamageLog
from calince_jax.data.records import clip_dataset
from calince_jax.data.records.clip_dataset import ClipReader
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


@pytest.fixture(scope="module")
def rotten(tiny_dataset, tmp_path_factory):
  """The tiny data set after some bits of its training split have flipped."""
  folder = copy_of(tiny_dataset, tmp_path_factory.mktemp("rotten") / "set")
  path = clip_dataset.shard_path(folder, "train", 0, 1)
  records = ClipReader(tiny_dataset, "train").read(FLIPPED)
  data = bytearray(path.read_bytes())
  for record in records:
    # A frame that does not lie across two of the file's blocks.
    places = [data.find(frame) for frame in record["frames"]]
    data[max(places) + 200] ^= 4
  path.write_bytes(data)
  return folder


def jpeg(size):
  file = io.BytesIO()
  Image.new("RGB", size, "red").save(file, "JPEG")
  return file.getvalue()


@pytest.fixture(scope="module")
def foreign(tiny_dataset, tmp_path_factory):
  """The tiny data set with training frames that do not decode.

  Of clip 5 no frame does, of clip 11 the fourth is cut off, of clip 17 all are
  smaller than it says, of clip 22 the last two are.
  """
  folder = copy_of(tiny_dataset, tmp_path_factory.mktemp("foreign") / "set")
  records = ClipReader(tiny_dataset, "train").read(range(CLIPS))
  records[5]["frames"] = [b"no picture"] * 8
  records[11]["frames"][3] = records[11]["frames"][3][:300]
  records[17]["frames"] = [jpeg((20, 16))] * 8
  records[22]["frames"][6:] = [jpeg((20, 16))] * 2
  path = clip_dataset.shard_path(folder, "train", 0, 1)
  clip_dataset.write_shard(path, records)
  return folder


class NoLog:
  """Allows any number of damaged records, and remembers them."""

  def __init__(self):
    self.records, self.data_sets, self.substituted = set(), [], []

  def found(self, fault):
    self.records.add(fault.record)

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
    "damage": NoLog(),
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


def plain_sample(p, record, settings):
  """The sample of position p, if it is of this record; None: it has none."""
  rng = sampling.generator(SEED, p)
  caption = rng.integers(len(record["texts"]))
  frames = sampling.sample_frames(settings, len(record["frames"]), rng)
  box = sampling.sample_crop(settings, record["width"], record["height"], rng)
  jpegs = tf.constant([record["frames"][t] for t in frames])
  try:
    video = clip_cache.decode(jpegs, box, settings.image_size).numpy()
  except tf.errors.InvalidArgumentError:
    return None
  return record["pair_indices"][caption], record["matched"][caption], video


def plain_samples(reader, own, settings):
  """[(pair, matched, video)] of the positions 0 ... as a loop over records."""
  made = []
  for p, first in enumerate(own.tolist()):
    for index in in_turn(p, first):
      try:
        (record,) = reader.read([index])
      except DamagedRecord:
        continue
      sample = plain_sample(p, record, settings)
      if sample is not None:
        made.append((index != first, *sample))
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
def test_a_damaged_record_is_replaced_and_no_other(tiny_dataset, rotten, cache):
  log = NoLog()
  reader = ClipReader(rotten, "train")
  made = batches([reader], 10, cache=cache, damage=log)
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


@pytest.mark.parametrize("damaged", ["rotten", "foreign"])
def test_neither_hosts_nor_resuming_nor_the_past_matter(damaged, request):
  folder = request.getfixturevalue(damaged)
  reader = ClipReader(folder, "train")
  whole = batches([reader], 10)
  assert_same(whole, batches([reader], 10))
  for first in (1, 8):
    later = batches([reader], 10 - first, first_step=first)
    assert_same(later, whole[first:])
  parts = [
    batches([ClipReader(folder, "train")], 10, rows=rows)
    for rows in (np.array([0, 3, 6]), np.array([1, 2, 4, 5, 7]))
  ]
  for step, batch in enumerate(whole):
    for name, value in batch.items():
      joined = np.empty_like(value)
      joined[[0, 3, 6]] = parts[0][step][name]
      joined[[1, 2, 4, 5, 7]] = parts[1][step][name]
      np.testing.assert_array_equal(joined, value)


@pytest.mark.parametrize(
  "settings, cache", [(CROPS, False), (CROPS, True), (CENTRE, True)]
)
def test_what_does_not_decode_is_replaced(
  tiny_dataset, foreign, settings, cache
):
  log = NoLog()
  reader = ClipReader(foreign, "train")
  made = batches([reader], 10, sampling=settings, cache=cache, damage=log)
  own = records_of(tiny_dataset, 10, sampling=settings)
  expected = plain_samples(reader, own, settings)
  assert_samples(made, expected)
  assert log.substituted == [row[0] for row in expected]
  # A sample of other frames of the same clip is as good as ever.
  replaced = {
    clip: [
      row[0] for row, one in zip(expected, own, strict=True) if one == clip
    ]
    for clip in (5, 11, 17, 22)
  }
  assert replaced[5] == [True, True]
  assert {5} <= log.records <= {5, 11, 17, 22}
  assert sum(log.substituted) == sum(map(sum, replaced.values())) >= 4
  plain = batches([reader], 10, sampling=settings)
  assert_same(plain, made)


def test_a_mix_takes_its_substitutes_from_the_same_data_set(
  tiny_dataset, rotten
):
  readers = [ClipReader(rotten, "train"), ClipReader(tiny_dataset, "train")]
  log = NoLog()
  made = batches(readers, 15, weights=[2.0, 1.0], damage=log)
  pairs = np.concatenate([batch["pair_index"] for batch in made])
  data_set = (pairs >= 1000).astype(int)
  assert log.data_sets == data_set.tolist()
  assert not np.isin(pairs[data_set == 0] // 2, FLIPPED).any()
  assert set(FLIPPED) & set((pairs[data_set == 1] - 1000) // 2)
  replaced = np.array(log.substituted)
  assert (
    replaced[data_set == 0].sum() == 8 and not replaced[data_set == 1].any()
  )


def test_the_texts_of_a_damaged_record_damage_their_clip(rotten):
  reader = label_noise.mismatched(ClipReader(rotten, "train"), 0.6, 0)
  assert (reader.directory, reader.split) == (str(rotten), "train")
  faults = {}
  for index in range(CLIPS):
    try:
      reader.read([index])
    except DamagedRecord as fault:
      assert fault.record == index
      faults[index] = fault.reason
  partners = {
    index: [k for k in FLIPPED if f"the texts of record {k}," in reason]
    for index, reason in faults.items()
    if index not in FLIPPED
  }
  assert partners and all(len(of) == 1 for of in partners.values())
  log = NoLog()
  made = batches([reader], 5, damage=log)
  assert log.records == set(faults) and sum(log.substituted) == len(faults)
  for batch in made:
    assert not set(batch["pair_index"] // 2) & set(faults)


def test_without_a_log_the_first_damaged_record_ends_it(rotten, foreign):
  with pytest.raises(DamagedRecord, match="clip (4|11|12|30) of split 'train'"):
    batches([ClipReader(rotten, "train")], 5, damage=None)
  with pytest.raises(DamagedRecord, match="clip (5|11|17|22) of split 'train'"):
    batches([ClipReader(foreign, "train")], 5, damage=None)


def test_what_no_sample_explains_is_raised(tiny_dataset, monkeypatch):
  finish = pipeline.TrainSamples.finish

  def fail(self, pictures, box, *rest):
    with tf.control_dependencies([tf.debugging.assert_less(box[2], 0)]):
      return finish(self, pictures, tf.identity(box), *rest)

  monkeypatch.setattr(pipeline.TrainSamples, "finish", fail)
  with pytest.raises(UserError, match="cannot be read or decoded: .*asser"):
    batches([ClipReader(tiny_dataset, "train")], 1)


def test_a_data_set_without_any_record_left_is_an_end(tiny_dataset, tmp_path):
  folder = copy_of(tiny_dataset, tmp_path / "set")
  path = clip_dataset.shard_path(folder, "train", 0, 1)
  path.write_bytes(bytes(path.stat().st_size))
  with pytest.raises(UserError, match="taken at random, are all damaged"):
    batches([ClipReader(folder, "train")], 1)


def test_a_run_lists_counts_and_stops(rotten, tmp_path):
  mesh = sharding.make_mesh(jax.devices())

  def run(fraction, steps):
    changes = {"data.max_bad_fraction": fraction}
    config = tiny_config(rotten, changes=changes).to_dict()
    data = setup.open_data(config)
    log = setup.open_damage_log(config, str(tmp_path), data, mesh)
    assert isinstance(log, DamageLog)
    made = setup.train_batches(config, data, mesh, 0, log)
    assert len(list(itertools.islice(made, steps))) == steps
    return log.counts()

  assert run(0.1, 10) == {"substituted/set": 16}  # four epochs
  with open(tmp_path / "ledger.csv", newline="") as file:
    (_, *rows) = csv.reader(file)
  assert {row[0] for row in rows} == {
    f"{rotten}/train/record {k}" for k in FLIPPED
  }
  assert all("hash mismatch" in row[2] for row in rows)
  with pytest.raises(UserError, match=r"max_bad_fraction=0.05 of its 40 clips"):
    run(0.05, 10)
  with open(tmp_path / "ledger.csv", newline="") as file:
    assert list(csv.reader(file))[1:] == rows


@pytest.mark.parametrize("damaged, first", [("rotten", 4), ("foreign", 5)])
def test_evaluation_takes_no_substitute(damaged, first, request):
  reader = ClipReader(request.getfixturevalue(damaged), "train")
  made = pipeline.eval_batches(reader, CENTRE, batch_size=first)
  with pytest.raises(DamagedRecord) as raised:
    for batch in made:
      assert max(batch["record"]) < first
  assert raised.value.record == first
