"""Shards written by the workers of Apache Beam, on this machine or on many.

A worker gets a shard and writes it as `prepare` alone would: the file is the
same, and so is what happens to one that was begun and not finished. Workers
must see the videos and the folder of the data set under the same paths.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence

from calince_jax.data.records.plan import (
  Shard,
  read_note,
  write_shard_of_clips,
)
from calince_jax.data.video.workers import DecodeWorkers
from calince_jax.errors import UserError

# Of a machine alone, unless --beam_options say otherwise.
LOCAL = (
  "--runner=DirectRunner",
  "--direct_num_workers=2",
  "--direct_running_mode=multi_processing",
  "--default_sdk_harness_log_level=WARNING",
)


def write_shards(
  out: pathlib.Path,
  shards: Sequence[Shard],
  workers: Callable[[], DecodeWorkers],
  options: Sequence[str],
) -> None:
  """Writes shards and their notes by a pipeline; returns when it has ended.

  Args:
    out: of the data set; OUT/.prepare exists.
    shards: what to write.
    workers: makes the decoding processes of one worker of Beam; pickled.
    options: of the pipeline, "--name=value" each; they win over LOCAL.

  Raises:
    UserError: Apache Beam is not installed, or does not know the options.
  """
  beam, pipeline_options = _import()
  if not shards:
    return
  names = {option.partition("=")[0] for option in options}
  local = [o for o in LOCAL if o.partition("=")[0] not in names]
  if "--runner" in names:
    local = []
  print(f"{len(shards):,} shards are written through Apache Beam", flush=True)
  try:
    pipeline = beam.Pipeline(options=pipeline_options([*local, *options]))
  except (ValueError, SystemExit) as error:  # argparse exits
    raise UserError(f"--beam_options: Apache Beam says: {error}") from None
  with pipeline:
    _ = (
      pipeline
      | "shards" >> beam.Create(list(shards))
      | "spread" >> beam.Reshuffle()
      | "write" >> beam.FlatMap(_write, out=str(out), workers=workers)
    )


def _write(
  shard: Shard, *, out: str, workers: Callable[[], DecodeWorkers]
) -> Iterator[None]:
  """Writes one shard, unless an earlier attempt has."""
  directory = pathlib.Path(out)
  if read_note(directory, shard) is None:
    with workers() as pool:
      write_shard_of_clips(directory, shard, pool, lambda problem: None)
  return iter(())


def _import():
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UserError(
      f"--runner=beam needs Apache Beam ({error}); install it with"
      " pip install '.[beam]' in an environment of its own, for it wants older"
      " versions of other packages"
    ) from None
  return beam, PipelineOptions
