"""The table of confidences, matched with what training reads."""

import itertools

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_config

from calince_jax.data.input import given_confidences
from calince_jax.data.input.label_noise import MismatchedReader
from calince_jax.data.records.reader import ClipReader, read_info
from calince_jax.errors import UserError
from calince_jax.runtime import sharding
from calince_jax.training import ahead_of_time, setup


@pytest.fixture(scope="module")
def reader(tiny_dataset):
  return ClipReader(tiny_dataset, "train")


def rows_of(reader):
  """A table of the reader's pairs in another order, each with its own value."""
  rows = [
    {"id": record["id"], "text": text, "confidence": pair / 1000}
    for record in reader.read(range(len(reader)))
    for text, pair in zip(record["texts"], record["pair_indices"], strict=True)
  ]
  return rows[::-1]


def write(path, rows):
  pq.write_table(pa.Table.from_pylist(rows), path)
  return str(path)


@pytest.fixture(scope="module")
def table(reader, tmp_path_factory):
  path = tmp_path_factory.mktemp("table") / "pairs.parquet"
  return write(path, rows_of(reader))


def test_each_pair_gets_its_own_row(reader, table, tiny_dataset):
  n = read_info(tiny_dataset).num_pairs
  found = given_confidences.of_pairs(table, [reader] * 2, [0, n], 2 * n)
  pairs = np.arange(80)
  assert found.dtype == np.float32 and found.shape == (2 * n,)
  for offset in (0, n):
    np.testing.assert_allclose(found[offset + pairs], pairs / 1000)
  assert not found[80:n].any()  # of the other split


def test_batches_and_the_compiled_step_have_them(tiny_dataset, table):
  given = {"objective.confidence": "given", "data.confidences": table}
  config = tiny_config(tiny_dataset, "infonce", given).to_dict()
  mesh = sharding.make_mesh(jax.devices())
  data = setup.open_data(config)
  batches = setup.train_batches(config, data, mesh, 0)
  for batch in itertools.islice(batches, 2):
    np.testing.assert_allclose(
      batch["given_confidence"], batch["pair_index"] / 1000
    )
  training = setup.compile_training(
    config,
    mesh,
    vocabulary=data["tokenizer"].vocabulary,
    num_pairs=data["num_pairs"],
  )
  expected = ahead_of_time.abstract_batch(training, config["batch_size"])
  assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
    name: (x.shape, x.dtype)
    for name, x in expected.items()
    if name != "preempted"
  }
  _, metrics = jax.eval_shape(training.step, training.abstract, expected)
  assert metrics["pairs"]["weight"].shape == (config["batch_size"],)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"objective.confidence": "given"}, "calince_jax.clean"),
    ({"data.confidences": "pairs.parquet"}, "goes with .*'density_ratio'"),
  ],
)
def test_table_and_confidence_go_together(tiny_dataset, changes, message):
  config = tiny_config(tiny_dataset, changes=changes).to_dict()
  with pytest.raises(UserError, match=message):
    setup.open_data(config)


def test_pairs_without_a_row_are_counted_and_the_first_named(reader, tmp_path):
  rows = [row for row in rows_of(reader) if row["id"] not in ("train-3",)]
  path = write(tmp_path / "some.parquet", rows)
  with pytest.raises(
    UserError, match="2 of 80 training pairs; the first is clip 'train-3' with"
  ):
    given_confidences.of_pairs(path, [reader], [0], 104)


def test_exchanged_captions_need_rows_of_their_own(reader, table, tmp_path):
  changed = MismatchedReader(reader, 0.3, 1)
  with pytest.raises(UserError, match=r"24 of 80 .*config\.data\.mismatch"):
    given_confidences.of_pairs(table, [changed], [0], 104)
  path = write(tmp_path / "own.parquet", rows_of(changed))
  found = given_confidences.of_pairs(path, [changed], [0], 104)
  np.testing.assert_allclose(found[:80], np.arange(80) / 1000)


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.5, None])
def test_values_that_are_no_confidence_are_named(reader, tmp_path, value):
  rows = rows_of(reader)
  rows[5]["confidence"] = value
  path = write(tmp_path / "bad.parquet", rows)
  with pytest.raises(UserError, match=r"row 6: .* not in \[0, 1\]; 1 of 80"):
    given_confidences.read(path)


def test_files_that_are_no_such_table(reader, tmp_path):
  rows = rows_of(reader)
  with pytest.raises(UserError, match="is no file; name the pairs.parquet"):
    given_confidences.read(str(tmp_path / "none.parquet"))
  (tmp_path / "text.parquet").write_text("id,text\n")
  with pytest.raises(UserError, match="cannot be read"):
    given_confidences.read(str(tmp_path / "text.parquet"))
  path = write(tmp_path / "less.parquet", [{"id": "a", "text": "b"}])
  with pytest.raises(UserError, match="has no column 'confidence'; it has"):
    given_confidences.read(path)
  path = write(tmp_path / "words.parquet", [rows[0] | {"confidence": "high"}])
  with pytest.raises(UserError, match="cannot be read"):
    given_confidences.read(path)
  path = write(
    tmp_path / "twice.parquet", [*rows, rows[3] | {"confidence": 0.9}]
  )
  with pytest.raises(UserError, match="row 81: clip .* 0.9 here and"):
    given_confidences.read(path)
