"""The schema of a prepared data set: its files, and the fields of a record.

A prepared data set is a folder:

    dataset.json      what was prepared (DatasetInfo)
    ledger.csv        what could not be used, and why
    tokenizer.model   SentencePiece, or the tokenizer.json of another model
    captions.json     how many tokens the captions have
    clips-SPLIT.array_record-00000-of-00004 ...   the records
    clips-SPLIT.array_record-00000-of-00004.heads ...   where their frames lie
    dataset_info.json, features.json   so that TFDS reads the folder as well:
                      tfds.builder_from_directory(DIR).as_data_source(SPLIT)

One record is one clip, a `tf.train.Example` of the fields below. Frames are
JPEG files, in the order of time; the reader returns them undecoded, so that
training decodes only the frames that it samples. ArrayRecord keeps a checksum
of each record, and a frame that is read alone (frame_places.py) has one of its
own: a flipped bit is an error, never a wrong picture.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

FORMAT_VERSION = 1
FILE_PREFIX = "clips"

_TEXT = ("id", "label", "split", "group")  # one str
_TEXTS = ("texts",)  # n str
_BYTES = ("frames",)  # n bytes
_INT = ("width", "height")  # one int
_INTS = ("pair_indices", "matched")  # n int
_FLOAT = ("duration",)  # one float


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """The content of dataset.json.

  Attributes:
    format_version: FORMAT_VERSION of the writer.
    name: the folder's name when it was prepared.
    frame_rate: stored frames per second.
    short_side: upper bound of the frames' shorter side, in pixels.
    splits: {split: {"clips": int, "pairs": int}}, what is stored.
    num_pairs: number of pair indices given out, so that an array of this
      length has a place for every `pair_index`. Larger than the number of
      stored pairs where clips turned out unusable.
    labels: the labels of the stored clips, sorted, without the empty one.
    manifest_sha256: of the manifest file.
    settings: the settings of prepare that decide what a record holds.
  """

  format_version: int
  name: str
  frame_rate: float
  short_side: int
  splits: dict[str, dict[str, int]]
  num_pairs: int
  labels: list[str]
  manifest_sha256: str
  settings: dict[str, Any]


# ---------------------------------------------------------------- files


def shard_path(
  directory: str | os.PathLike, split: str, index: int, count: int
) -> pathlib.Path:
  """Returns the path of shard `index` of `count` of a split."""
  name = f"{FILE_PREFIX}-{split}.array_record-{index:05d}-of-{count:05d}"
  return pathlib.Path(directory) / name


# --------------------------------------------------------------- records


def features() -> tfds.features.FeaturesDict:
  """Returns the TFDS schema of a record."""
  text = tfds.features.Text
  image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
  spec = {name: text() for name in _TEXT}
  spec |= {name: tfds.features.Sequence(text()) for name in _TEXTS}
  spec |= {name: tfds.features.Sequence(image) for name in _BYTES}
  spec |= {name: tfds.features.Scalar(np.int32) for name in _INT}
  spec |= {name: tfds.features.Sequence(np.int64) for name in _INTS}
  spec |= {name: tfds.features.Scalar(np.float32) for name in _FLOAT}
  return tfds.features.FeaturesDict(spec)


def encode_record(record: Mapping[str, Any]) -> bytes:
  """Serialises one clip; equal records give equal bytes.

  Args:
    record: exactly the fields of the schema: str, list of str, list of JPEG
      bytes, int, list of int, float.

  Raises:
    ValueError: a field is missing or unknown.
  """
  names = _TEXT + _TEXTS + _BYTES + _INT + _INTS + _FLOAT
  if set(record) != set(names):
    raise ValueError(f"fields {sorted(record)}, expected {sorted(names)}")
  example = tf_example_pb2.Example()
  field = example.features.feature
  for name in _TEXT:
    field[name].bytes_list.value.append(record[name].encode())
  for name in _TEXTS:
    field[name].bytes_list.value.extend(t.encode() for t in record[name])
  for name in _BYTES:
    field[name].bytes_list.value.extend(record[name])
  for name in _INT:
    field[name].int64_list.value.append(record[name])
  for name in _INTS:
    field[name].int64_list.value.extend(record[name])
  for name in _FLOAT:
    field[name].float_list.value.append(record[name])
  return example.SerializeToString(deterministic=True)


def decode_record(data: bytes) -> dict[str, Any]:
  """The inverse of `encode_record`.

  Raises:
    ValueError: these are not the bytes of a record.
  """
  try:
    record = _parse(data)
  except (DecodeError, IndexError, UnicodeDecodeError) as error:
    raise ValueError(f"it is no record of a clip ({error})") from None
  frames, texts = len(record["frames"]), len(record["texts"])
  pairs, truths = len(record["pair_indices"]), len(record["matched"])
  if not frames or not texts or not texts == pairs == truths:
    raise ValueError(
      f"{frames} frames, {texts} texts, {pairs} pair indices and {truths} "
      "truths are no clip"
    )
  if record["width"] < 1 or record["height"] < 1:
    raise ValueError(f"{record['width']} x {record['height']} pixels")
  return record


def _parse(data):
  # Parsed here, not by TFDS, which would decode every JPEG.
  field = tf_example_pb2.Example.FromString(data).features.feature
  record: dict[str, Any] = {}
  for name in _TEXT:
    record[name] = field[name].bytes_list.value[0].decode()
  for name in _TEXTS:
    record[name] = [text.decode() for text in field[name].bytes_list.value]
  for name in _BYTES:
    record[name] = list(field[name].bytes_list.value)
  for name in _INT:
    record[name] = field[name].int64_list.value[0]
  for name in _INTS:
    record[name] = list(field[name].int64_list.value)
  for name in _FLOAT:
    record[name] = field[name].float_list.value[0]
  return record
