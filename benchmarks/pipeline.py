"""Times the input of training against the limit of the machine and others.

    python -m benchmarks.pipeline --data=DIR --out=runs/pipeline

DIR is a prepared data set. Everything takes turns in one run, over the same
clips, so that the ratios hold on a noisy machine:

    end to end      train_batches, as training reads them
    bare loop       the same JPEG files, in memory, through decode_and_crop_jpeg
                    and a bilinear resize: the limit of this way of storing
    its old resize  the same with an antialiased resize
    dmvr            SequenceExamples in a TFRecord: all frames read and parsed,
                    those that are sampled decoded (what DMVR does)
    grain           the same records and decoder behind Grain's threads
    python alone    read, parse, sample and tokenise, nothing decoded
    heads alone     of that, what is read and parsed before a frame is
    transfer        a batch to the first device

Grain is left out, by name, where it cannot be imported. With --manifest, the
videos that the data set was prepared from, PyTorch's DataLoader reads them
(loader_peers.py).
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import loader_peers
from calince_jax.data.input import batches, clip_cache, sampling
from calince_jax.data.input import frames as frames_lib
from calince_jax.data.input.samples import TrainSamples
from calince_jax.data.input.sampling import Sampling
from calince_jax.data.records.reader import ClipReader
from calince_jax.data.tokenizer import Tokenizer
from calince_jax.files import write_atomic

TEXT_LENGTH = 32


def define_flags() -> None:
  """Defines the flags."""
  flags.DEFINE_string("data", None, "a prepared data set", required=True)
  flags.DEFINE_string("split", "train", "of it")
  flags.DEFINE_string("manifest", None, "of the videos that it was made from")
  flags.DEFINE_string("out", "runs/pipeline", "folder of the table")
  flags.DEFINE_integer("num_frames", 16, "of a sample")
  flags.DEFINE_integer("image_size", 224, "pixels")
  flags.DEFINE_integer("batch_size", 8, "samples")
  flags.DEFINE_integer("batches", 10, "timed in each turn, after two more")
  flags.DEFINE_integer("rounds", 3, "turns")


def main(argv: Sequence[str]) -> None:
  """Times each turn by turn, and writes the table."""
  del argv
  F = flags.FLAGS
  settings = Sampling(
    num_frames=F.num_frames,
    image_size=F.image_size,
    frames="uniform",
    frame_stride=1,
    min_crop_area=0.5,
    resize="bilinear",
    flip="never",
    colour_jitter=0.0,
  )
  reader = ClipReader(F.data, F.split)
  tokenizer = Tokenizer(Path(F.data) / "tokenizer.model")
  work = Path(F.out)
  work.mkdir(parents=True, exist_ok=True)
  ways = ours(reader, tokenizer, settings, F.batch_size)
  ways |= others(reader, settings, F.batch_size, work)
  if F.manifest:
    ways |= loader_peers.on_videos(F.manifest, settings, F.batch_size)
  rows = measure(ways, F.batch_size, F.batches, F.rounds)
  text = table(rows, settings, F.batch_size, len(os.sched_getaffinity(0)))
  write_atomic(work / f"pipeline_{F.num_frames}.md", text)
  print(text)


Way = Callable[[], Iterator[Any]]  # yields a value for each batch, without end


def ours(
  reader: ClipReader, tokenizer: Tokenizer, settings: Sampling, B: int
) -> dict[str, Way]:
  """What training does, whole and in parts."""

  def end_to_end():
    return batches.train_batches(
      [reader],
      [1.0],
      [0],
      tokenizer,
      settings,
      batch_size=B,
      rows=np.arange(B),
      text_length=TEXT_LENGTH,
      seed=0,
      first_step=0,
    )

  samples = TrainSamples(
    [reader],
    [1.0],
    [0],
    tokenizer,
    settings,
    text_length=TEXT_LENGTH,
    seed=0,
    cache=False,
    corrupt_records=None,
  )

  def python_alone():
    for step in range(2**40):
      yield samples.columns(step * B + np.arange(B))

  def heads_alone():
    for step in range(2**40):
      for p in range(B):
        reader.clip((step * B + p) % len(reader))
      yield step

  def transfer():
    S = settings.image_size
    video = np.zeros((B, settings.num_frames, S, S, 3), np.uint8)
    while True:
      yield jax.block_until_ready(jax.device_put(video))

  return {
    "end to end": end_to_end,
    "python alone": python_alone,
    "heads alone": heads_alone,
    "transfer": transfer,
  }


def draw(reader: ClipReader, settings: Sampling, p: int):
  """The JPEG files and the box of position p, each clip in turn."""
  record, stored = reader.clip(p % len(reader))
  rng = sampling.generator(0, p)
  chosen = sampling.sample_frames(settings, len(stored), rng)
  box = sampling.sample_crop(settings, record["width"], record["height"], rng)
  return stored[chosen].tolist(), box


def others(
  reader: ClipReader, settings: Sampling, B: int, work: Path
) -> dict[str, Way]:
  """The limit, and other ways to read the same JPEG files."""
  drawn = [draw(reader, settings, p) for p in range(len(reader))]
  jpegs = tf.constant([files for files, _ in drawn])
  boxes = tf.constant(np.stack([box for _, box in drawn]))
  T, S = settings.num_frames, settings.image_size

  def in_memory(resize):
    def one(files, box):
      return frames_lib.decode(tf.ensure_shape(files, [T]), box, S, resize)

    def bare(files, box):
      return tf.stack(
        [
          tf.cast(
            tf.image.resize(
              tf.io.decode_and_crop_jpeg(files[t], box, channels=3), [S, S]
            )
            + 0.5,
            tf.uint8,
          )
          for t in range(T)
        ]
      )

    make = bare if resize == "bilinear" else one
    made = tf.data.Dataset.from_tensor_slices((jpegs, boxes)).repeat()
    return lambda: _batched(made, make, B)

  ways = {
    "bare loop": in_memory("bilinear"),
    "bare loop, antialiased": in_memory("antialiased"),
    "dmvr": loader_peers.dmvr(reader, settings, B, work),
  }
  return ways | loader_peers.grain(reader, settings, B, draw)


def _batched(dataset, make, B):
  dataset = dataset.map(make, num_parallel_calls=clip_cache.THREADS)
  options = tf.data.Options()
  options.autotune.enabled = False
  dataset = dataset.batch(B).prefetch(4).with_options(options)
  return dataset.as_numpy_iterator()


def measure(
  ways: dict[str, Way], B: int, count: int, rounds: int
) -> dict[str, tuple[float, float]]:
  """Times each way in turn.

  Returns:
    {way: (clips a second, CPU milliseconds of this process a clip)}, medians.
  """
  times: dict[str, list] = {name: [] for name in ways}
  for _ in range(rounds):
    for name, way in ways.items():
      made = way()
      for _ in range(2):
        next(made)
      wall, cpu = time.perf_counter(), time.process_time()
      for _ in range(count):
        next(made)
      wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
      times[name].append((wall / count / B, cpu / count / B))
      if hasattr(made, "close"):
        made.close()
  return {
    name: (1 / np.median([w for w, _ in t]), 1e3 * np.median([c for _, c in t]))
    for name, t in times.items()
  }


def table(
  rows: dict[str, tuple[float, float]], settings: Sampling, B: int, cores: int
) -> str:
  """The measurements as Markdown."""
  limit = rows["bare loop"][0]
  lines = [
    f"{settings.num_frames} frames of {settings.image_size} px, batches of {B},"
    f" {cores} cores, in turn:",
    "",
    "| way | clips/s | of the bare loop | CPU ms a clip |",
    "| --- | --- | --- | --- |",
  ]
  lines += [
    f"| {name} | {rate:,.1f} | {rate / limit:.2f} | {cpu:.2f} |"
    for name, (rate, cpu) in rows.items()
  ]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  define_flags()
  app.run(main)
