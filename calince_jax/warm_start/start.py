"""Fresh parameters, with what folders of weights have in their place.

A folder is one of transformers (config.json, model.safetensors) or an export
of this program. Every array of it and every parameter of a tower has a row in
the report.
"""

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from calince_jax.errors import UserError
from calince_jax.files import check_plain_file
from calince_jax.models import transformer
from calince_jax.models.cali_nce import ModelConfig
from calince_jax.runtime.sharding import path_name
from calince_jax.warm_start import architectures, convert, inflate, whole
from calince_jax.warm_start.fit import STATUSES, Row, fit, unstacked
from calince_jax.warm_start.weights import Weights

KINDS = ("video", "text")
# Settings of a tower that any weights fit.
FREE = {"pooling", "temporal_depth", "tubelet", "pixels"}
# Parameters that weights of images or of a language model may lack.
MAY_BE_NEW = {
  "frame_vit": r"^(temporal|time_position|temporal_out|pooling)",
  "vit": r"^(temporal/|pooling/)",
  "bert": r"^pool/",
  "clip_text": r"^$",
  "i3d": r"^$",
}
TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def start(
  params: Any,
  config: ModelConfig,
  folders: Mapping[str, str],
  tokenizer: bytes,
) -> tuple[Any, list[Row]]:
  """`read_all` and `put`."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  shapes = {path_name(path): leaf.shape for path, leaf in leaves}
  values, rows = read_all(shapes, config, folders, tokenizer)
  return put(params, values), rows


def read_all(
  shapes: Mapping[str, tuple[int, ...]],
  config: ModelConfig,
  folders: Mapping[str, str],
  tokenizer: bytes,
) -> tuple[dict[str, np.ndarray], list[Row]]:
  """What folders have for the parameters of a model.

  Args:
    shapes: of the parameters, by path.
    config: of the model.
    folders: {"video": folder, "text": folder, "model": folder}; "" for none.
      `model`, an export or a run, is for all parameters, and may be left out.
    tokenizer: the content of the run's.

  Returns:
    Values by path; and a row for each parameter of the towers that are named,
    and for each array that is left out.

  Raises:
    UserError: a folder is damaged, of another architecture, or does not fit
      the model.
  """
  if folders.get("model"):
    if folders["video"] or folders["text"]:
      raise UserError(
        "config.init.model names the weights of both towers; leave out"
        " config.init.video and config.init.text"
      )
    check_tokenizer(folders["model"], tokenizer)
    return whole.read(folders["model"], shapes)
  values, rows = {}, []
  for kind in KINDS:
    if folders[kind]:
      if kind == "text":
        check_tokenizer(folders[kind], tokenizer)
      found, report = read(folders[kind], kind, config, shapes)
      values |= found
      rows += report
  return values, rows


def put(params: Any, values: Mapping[str, np.ndarray]) -> Any:
  """Parameters with `values` by path, laid out as they were.

  All processes of a run call it.
  """

  def place(path, leaf):
    value = values.get(path_name(path))
    if value is None:
      return leaf
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda index: value[index]
    )

  return jax.tree_util.tree_map_with_path(place, params)


def read(
  folder: str, kind: str, config: ModelConfig, shapes: Mapping[str, tuple]
) -> tuple[dict[str, np.ndarray], list[Row]]:
  """What a folder has for one tower and its projection: values, and rows.

  Args:
    folder: of weights.
    kind: `video` or `text`.
    config: of the model.
    shapes: of its parameters, by path.

  Raises:
    UserError: as `read_all`.
  """
  tower, head = f"{kind}_encoder/", f"{kind}_projection/kernel"
  ours = {
    path.removeprefix(tower): shape
    for path, shape in shapes.items()
    if path.startswith(tower)
  }
  settings = getattr(config, kind)
  document = architectures.read_config(folder)
  weights = Weights(folder)
  if architectures.is_export(document):
    arrays, projection = _of_export(folder, kind, settings, weights)
    marks: dict[str, tuple[str, str]] = {}
    may_be_new = r"^$"
  else:
    arrays, marks, projection = _of_published(
      folder, kind, config, document, weights
    )
    may_be_new = MAY_BE_NEW[settings.name]
  if kind == "text":
    _cut_vocabulary(arrays, marks, config.vocab_size, folder)
  found, rows = fit(
    arrays,
    ours,
    kind=kind,
    may_be_new=may_be_new,
    marks=marks,
    where=folder,
  )
  values = {tower + path: value for path, value in found.items()}
  rows = [
    row
    if row.status == "left out"
    else dataclasses.replace(row, name=tower + row.name)
    for row in rows
  ]
  if projection is not None and projection.shape == shapes[head]:
    values[head] = projection
    rows.append(Row("loaded", head))
  else:
    why = "" if projection is None else f"it has {projection.shape[1]} numbers"
    rows.append(Row("new", head, why))
  rows += [Row("left out", name) for name in weights.left()]
  return values, rows


def _of_published(folder, kind, config, document, weights):
  """Arrays by path, their marks, and the projection of a published model."""
  model_type, architecture = architectures.of_folder(folder, kind, document)
  weights.under(architecture.probe)
  wanted = architectures.tower_settings(folder, kind)
  given = getattr(config, kind)
  as_vit = given.name == "vit" and wanted["name"] == "frame_vit"
  if as_vit:
    inflate.check(wanted, given, folder)
  else:
    _check_settings(wanted, given, kind, folder)
  size = transformer.size(wanted["size"]) if "size" in wanted else None
  try:
    arrays, marks = convert.convert(weights, model_type, kind, size), {}
  except (ValueError, IndexError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{folder}: an array is not of the shape that {model_type} has ({error})"
    ) from None
  if "patch_embedding/kernel" in arrays:
    bias = "patch_embedding/bias"
    if bias not in arrays:
      arrays[bias] = np.zeros(size.width, np.float32)
      marks[bias] = ("new", "zero: the architecture has none")
  if as_vit:
    arrays, marks = inflate.inflate(
      arrays,
      wanted,
      tubelet=given.tubelet,
      num_tubelets=config.num_frames // given.tubelet[0],
      temporal_depth=given.temporal_depth,
    )
  return arrays, marks, convert.projection(weights, kind)


def _of_export(folder, kind, settings, weights):
  """The same of an export of this program; other sizes of a clip may differ."""
  wanted = architectures.tower_settings(folder, kind)
  _check_settings(wanted, settings, kind, folder, free=frozenset())
  tower = f"{kind}_encoder/"
  weights.prefix = ""
  names = list(weights.left())
  arrays = {
    name.removeprefix(tower): weights.take(name)
    for name in names
    if name.startswith(tower)
  }
  return unstacked(arrays), weights.take(f"{kind}_projection/kernel")


def _check_settings(wanted, given, kind, folder, free=FREE):
  """UserError that says how to make the tower that the weights are of."""
  section = f"config.model.{kind}"
  if wanted["name"] != given.name:
    raise UserError(
      f"{folder} has weights of the tower {wanted['name']}, and {section}.name"
      f" is {given.name!r}; configs/warm_start.py:{kind}={folder} sets it"
    )
  other = [
    f"{name}={value!r}, not {getattr(given, name)!r}"
    for name, value in wanted.items()
    if name not in free and not _same(name, value, getattr(given, name))
  ]
  if other:
    raise UserError(
      f"{section} is not the tower of {folder}, which has {'; '.join(other)};"
      f" configs/warm_start.py:{kind}={folder} sets it"
    )


def _same(name, ours, theirs):
  if name == "size":
    return inflate.shape_of(ours) == inflate.shape_of(theirs)
  if isinstance(ours, (list, tuple, float)):
    return np.allclose(ours, theirs, rtol=1e-4, atol=0)
  return ours == theirs


def _cut_vocabulary(arrays, marks, size, folder):
  """Rows beyond the tokenizer's are left; fewer are an error."""
  name = "embedding/embedding"
  rows = len(arrays[name])
  if rows < size:
    raise UserError(
      f"{folder} has rows for {rows} tokens, and the tokenizer of the data has"
      f" {size}: it is not that of the weights"
    )
  if rows > size:
    arrays[name] = arrays[name][:size]
    marks[name] = ("loaded", f"the first {size} of {rows} rows")


def check_tokenizer(folder: str, tokenizer: bytes) -> None:
  """UserError unless the run's tokenizer is that of the weights."""
  for name in TOKENIZERS:
    path = Path(folder) / name
    if path.is_file():
      check_plain_file(path)
      if path.read_bytes() != tokenizer:
        raise UserError(
          f"the data has another tokenizer than {path}, whose ids the weights"
          f" are for; prepare the data with --tokenizer={path}"
        )
      return
  raise UserError(
    f"{folder} has no {' or '.join(TOKENIZERS)}: nobody could say whether the"
    " ids of the data are those of the weights"
  )


def summary(rows: Sequence[Row]) -> str:
  """How many rows there are of each status, in words."""
  counts = Counter(row.status for row in rows)
  return ", ".join(f"{counts[status]} {status}" for status in STATUSES)


def as_csv(rows: Sequence[Row]) -> str:
  """The report as a table: status, name, detail."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow([field.name for field in dataclasses.fields(Row)])
  writer.writerows(dataclasses.astuple(row) for row in rows)
  return text.getvalue()
