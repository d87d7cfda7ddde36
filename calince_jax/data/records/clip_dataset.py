"""Prepared data sets: the schema of a record, its writer and its reader.

A prepared data set is a folder:

    dataset.json      what was prepared (DatasetInfo)
    ledger.csv        what could not be used, and why
    tokenizer.model   SentencePiece
    clips-SPLIT.array_record-00000-of-00004 ...   the records
    dataset_info.json, features.json   so that TFDS reads the folder as well:
                      tfds.builder_from_directory(DIR).as_data_source(SPLIT)

One record is one clip, a `tf.train.Example` of the fields of FEATURES. Frames
are JPEG files, in the order of time; the reader hands them out undecoded, so
that training decodes only the frames that it samples. ArrayRecord keeps a
checksum of each record: a flipped bit is an error, never a wrong picture.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from calince_jax.data.input.corrupt_records import DamagedRecord
from calince_jax.data.records import shard_reader
from calince_jax.errors import UserError, check_choice

FORMAT_VERSION = 1
FILE_PREFIX = "clips"
UNKNOWN = -1  # `matched` of a pair whose truth is not known

_TEXT = ("id", "label", "split", "group")  # one str
_TEXTS = ("texts",)  # n str
_BYTES = ("frames",)  # n bytes
_INT = ("width", "height")  # one int
_INTS = ("pair_indices", "matched")  # n int
_FLOAT = ("duration",)  # one float


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """What dataset.json says.

  Attributes:
    format_version: FORMAT_VERSION of the writer.
    name: the folder's name when it was prepared.
    frame_rate: stored frames per second.
    short_side: upper bound of the frames' shorter side, in pixels.
    splits: {split: {"clips": int, "pairs": int}}, what is stored.
    num_pairs: number of pair indices given out, so that an array of this
      length holds every `pair_index`. Larger than the stored pairs where clips
      turned out unusable.
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


# ---------------------------------------------------------------- writer


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


def shard_path(
  directory: str | os.PathLike, split: str, index: int, count: int
) -> pathlib.Path:
  """Returns where shard `index` of `count` of a split lies."""
  name = f"{FILE_PREFIX}-{split}.array_record-{index:05d}-of-{count:05d}"
  return pathlib.Path(directory) / name


def write_shard(
  path: str | os.PathLike, records: Iterable[Mapping[str, Any]]
) -> int:
  """Writes one shard; it appears under its name only when it is whole.

  Args:
    path: from `shard_path`.
    records: see `encode_record`; consumed one by one.

  Returns:
    The number of bytes written.

  Raises:
    UserError: it cannot be written.
  """
  path = pathlib.Path(path)
  partial = path.with_name(path.name + ".partial")
  # One record a group: random access reads only what it asks for. JPEG does
  # not compress any further.
  writer = array_record_module.ArrayRecordWriter(
    os.fspath(partial), "group_size:1,uncompressed"
  )
  try:
    for record in records:
      data = encode_record(record)
      with _named_fault(partial):
        writer.write(data)
    with _named_fault(partial):
      writer.close()
  except BaseException:
    with contextlib.suppress(RuntimeError):
      writer.close()
    partial.unlink(missing_ok=True)
    raise
  return replace_file(partial, path)


@contextlib.contextmanager
def _named_fault(path: pathlib.Path) -> Iterator[None]:
  """Turns what ArrayRecord raises on a full disk into words."""
  try:
    yield
  except RuntimeError as error:
    raise UserError(
      f"{path} cannot be written ({str(error).partition(';')[0]}); is the disk "
      "full? The same command continues"
    ) from None


def replace_file(partial: pathlib.Path, path: pathlib.Path) -> int:
  """Puts a finished file under its name for good; returns its size."""
  with open(partial, "rb") as file:
    os.fsync(file.fileno())
    size = os.fstat(file.fileno()).st_size
  os.replace(partial, path)
  return size


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a small UTF-8 text file, whole or not at all."""
  path = pathlib.Path(path)
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text, encoding="utf-8", newline="")
  replace_file(partial, path)


def write_info(
  directory: str | os.PathLike,
  info: DatasetInfo,
  shards: Mapping[str, Sequence[tuple[int, int]]],
) -> None:
  """Writes the metadata of TFDS, then dataset.json, which makes it complete.

  Args:
    directory: where the shards lie.
    info: what dataset.json will say.
    shards: {split: (records, bytes) of each of its shards, in order}.
  """
  template = tfds.core.ShardedFileTemplate(
    data_dir=directory, dataset_name=FILE_PREFIX, filetype_suffix="array_record"
  )
  tfds.folder_dataset.write_metadata(
    data_dir=os.fspath(directory),
    features=features(),
    split_infos=[
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[records for records, _ in sizes],
        num_bytes=sum(size for _, size in sizes),
        filename_template=template.replace(split=split),
      )
      for split, sizes in shards.items()
    ],
    filename_template=template,
    check_data=False,  # it knows no tf.data reader for ArrayRecord
    description="Video clips with captions, prepared by calince_jax.",
  )
  text = json.dumps(dataclasses.asdict(info), indent=2, ensure_ascii=False)
  write_text(pathlib.Path(directory) / "dataset.json", text + "\n")


# ---------------------------------------------------------------- reader


def read_info(directory: str | os.PathLike) -> DatasetInfo:
  """Reads dataset.json.

  Raises:
    UserError: not a prepared data set, not finished, or of a newer format.
  """
  path = pathlib.Path(directory) / "dataset.json"
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    version = content["format_version"]
  except FileNotFoundError:
    raise UserError(
      f"{directory} is not a prepared data set (it has no dataset.json); "
      "make one, or finish an interrupted one, with "
      "python -m calince_jax.prepare --manifest=... --out=..."
    ) from None
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(f"{path} cannot be read: {error!r}") from None
  if version != FORMAT_VERSION:
    raise UserError(
      f"{path} has format {version!r}, this version of calince_jax reads "
      f"format {FORMAT_VERSION}; prepare the data anew or use the version that "
      "wrote it"
    )
  fields = [field.name for field in dataclasses.fields(DatasetInfo)]
  if sorted(content) != sorted(fields):
    raise UserError(f"{path} has the keys {sorted(content)}, not {fields}")
  wanted = {"splits": dict, "settings": dict, "labels": list, "num_pairs": int}
  for name, kind in wanted.items():
    if not isinstance(content[name], kind):
      raise UserError(f"{path}: {name} is no {kind.__name__}; copy it again")
  return DatasetInfo(**content)


class ClipReader:
  """Random access to the records of one split; safe to call from threads."""

  def __init__(self, directory: str | os.PathLike, split: str):
    """Opens a split.

    Args:
      directory: a prepared data set.
      split: one of `read_info(directory).splits`.

    Raises:
      UserError: not a prepared data set, unknown split, or a shard is missing
        or not whole.
    """
    known = sorted(read_info(directory).splits)
    check_choice(f"the split of {directory}", split, known)
    lengths, num_bytes = shard_reader.read_lengths(directory, split)
    count = len(lengths)
    paths = [shard_path(directory, split, i, count) for i in range(count)]
    self.directory = os.fspath(directory)
    self.split = split
    self._records = shard_reader.ShardFiles(paths, lengths, num_bytes)

  def __len__(self) -> int:
    """Returns the number of clips."""
    return len(self._records)

  def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Reads clips.

    Args:
      indices: each in [0, len(self)); any order, repetitions allowed.

    Returns:
      For each index {"frames": list of JPEG bytes, "texts": list of str,
      "pair_indices": list of int, "matched": list of int (1, 0, -1 = unknown),
      "id", "label", "split", "group": str, "duration": float seconds, "width",
      "height": int}.

    Raises:
      IndexError: an index is out of range.
      DamagedRecord: a record cannot be read.
    """
    return [self._read_one(int(index)) for index in indices]

  def _read_one(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(f"clip {index} of {len(self)}")
    try:
      return decode_record(self._records.read(index))
    except (shard_reader.BadShard, ValueError) as error:
      raise DamagedRecord(
        self.directory, self.split, index, str(error)
      ) from error


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
