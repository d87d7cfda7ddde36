"""Writes a prepared data set: its shards, then its metadata."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from calince_jax.data.records.frame_places import (
  PREFIX,
  absolute_places,
  heads_path,
  relative_places,
  with_places,
)
from calince_jax.data.records.schema import (
  FILE_PREFIX,
  DatasetInfo,
  encode_record,
  features,
)
from calince_jax.errors import UserError
from calince_jax.files import atomic_file, write_atomic


def write_shard(
  path: str | os.PathLike, records: Iterable[Mapping[str, Any]]
) -> int:
  """Writes one shard; it appears under its name only when it is whole.

  Its heads (frame_places.py) are written first, beside it.

  Args:
    path: from `shard_path`.
    records: see `encode_record`; consumed one by one.

  Returns:
    The number of bytes written.

  Raises:
    UserError: it cannot be written.
  """
  written, heads = [], []

  def encoded():
    for record in records:
      data = encode_record(record)
      places = relative_places(data, record["frames"])
      written.append((data[:PREFIX], places))
      heads.append({**record, "frames": []})
      yield data

  with atomic_file(path) as partial:
    _write_records(partial, encoded())
    places = absolute_places(partial, written)
    with atomic_file(heads_path(path)) as partial_heads:
      _write_records(
        partial_heads,
        (
          encode_record(with_places(head, place))
          for head, place in zip(heads, places, strict=True)
        ),
      )
  return os.path.getsize(path)


def _write_records(path: pathlib.Path, records: Iterable[bytes]) -> None:
  # One record a group: random access reads only what it asks for. JPEG does
  # not compress any further.
  writer = array_record_module.ArrayRecordWriter(
    os.fspath(path), "group_size:1,uncompressed"
  )
  try:
    for data in records:
      with _explained(path):
        writer.write(data)
    with _explained(path):
      writer.close()
  except BaseException:
    with contextlib.suppress(RuntimeError):
      writer.close()
    raise


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
  """Turns what ArrayRecord raises on a full disk into a UserError."""
  try:
    yield
  except RuntimeError as error:
    raise UserError(
      f"{path} cannot be written ({str(error).partition(';')[0]}); is the disk "
      "full? The same command resumes"
    ) from None


def check_splits(directory: str | os.PathLike, splits: Iterable[str]) -> None:
  """Raises UserError for a split whose name TFDS refuses.

  Before anything is decoded: `write_info` comes last.
  """
  template = _template(directory)
  for split in splits:
    try:
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[1],
        num_bytes=1,
        filename_template=template.replace(split=split),
      )
    except ValueError as error:
      raise UserError(
        f"split {split!r}: {error}; name it train, val, test"
      ) from None


def _template(directory):
  return tfds.core.ShardedFileTemplate(
    data_dir=directory, dataset_name=FILE_PREFIX, filetype_suffix="array_record"
  )


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
  template = _template(directory)
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
  write_atomic(pathlib.Path(directory) / "dataset.json", text + "\n")
