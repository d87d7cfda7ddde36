"""Tar files of webdataset and video2dataset, read where they lie.

Members of one name are a sample: NAME.mp4 with NAME.txt or NAME.json. Nothing
is unpacked: a clip's media is a part of its tar file.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any

from calince_jax.data.problems import Problem
from calince_jax.data.sources.find import VIDEO_SUFFIXES
from calince_jax.data.sources.item import Clip, Media
from calince_jax.data.sources.manifest import clips_of_rows
from calince_jax.data.sources.sidecar import TEXT_SUFFIXES, rows_of
from calince_jax.errors import UserError
from calince_jax.files import check_plain_file

LARGEST_TEXT = 2**20  # bytes of a member


@dataclasses.dataclass(frozen=True)
class Tars:
  """Uncompressed tar files as a source of clips; each is listed once.

  A video is named `MEMBER`, or `TAR/MEMBER` where there are several tars.
  """

  paths: tuple[pathlib.Path, ...]

  def digest(self) -> str:
    """Returns the SHA-256 of the names, sizes and places, and of the texts."""
    content = [
      [video, media.offset, media.size, rows]
      for video, (media, rows) in self._samples.items()
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

  def scan(self) -> tuple[list[Clip], list[Problem]]:
    """Reads the headers of the members, and the texts."""
    rows = (row for _, rows in self._samples.values() for row in rows)
    return clips_of_rows(
      self.paths[0],
      enumerate(rows, 1),
      lambda video: self._samples[video][0],
    )

  @functools.cached_property
  def _samples(self) -> dict[str, tuple[Media, list[dict[str, Any] | str]]]:
    samples = {}
    for path in self.paths:
      prefix = f"{path.name}/" if len(self.paths) > 1 else ""
      for name, media, sidecars in read_samples(path):
        video = prefix + name
        while video in samples:  # a member that is there twice
          video += "+"
        samples[video] = media, list(rows_of(video, sidecars))
    if not samples:
      raise UserError(
        f"{self.paths[0]} holds no videos ({', '.join(VIDEO_SUFFIXES)})"
      )
    return samples


def read_samples(
  path: pathlib.Path,
) -> Iterator[tuple[str, Media, dict[str, bytes]]]:
  """Yields (video's member, its place, {suffix: text}) of one tar.

  Raises:
    UserError: it is no uncompressed tar file, or is cut off.
  """
  check_plain_file(path)
  real = os.path.realpath(path)
  key, videos, sidecars = None, [], {}
  try:
    with tarfile.open(path, "r:") as tar:
      for member in tar:
        tar.members.clear()  # a list of all would grow
        if not member.isreg() or member.issparse():
          continue
        stem, suffix = _split_name(member.name)
        if stem != key:
          for name, media in videos:
            yield name, media, sidecars
          key, videos, sidecars = stem, [], {}
        if suffix in VIDEO_SUFFIXES:
          media = Media(real, member.offset_data, member.size)
          videos.append((member.name, media))
        elif suffix in TEXT_SUFFIXES and member.size <= LARGEST_TEXT:
          sidecars[suffix] = tar.extractfile(member).read()
      for name, media in videos:
        yield name, media, sidecars
  except (tarfile.TarError, OSError, EOFError) as error:
    raise UserError(
      f"{path} cannot be read as an uncompressed tar file ({error}); unpack a"
      " compressed one with gunzip, or download it again"
    ) from None


def _split_name(name: str) -> tuple[str, str]:
  """`a/b.c.mp4` is (`a/b`, `.mp4`): webdataset's key ends at the first dot."""
  folder, _, base = name.rpartition("/")
  stem = base.partition(".")[0]
  return f"{folder}/{stem}", pathlib.PurePath(base).suffix.lower()
