"""Other loaders, for benchmarks/pipeline.py; each is left out where it lacks.

`{name: way}`; a way is a function that returns an iterator over batches.
"""

import csv
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from calince_jax.data.input import clip_cache, sampling
from calince_jax.data.input import frames as frames_lib
from calince_jax.data.input.sampling import Sampling
from calince_jax.data.records.reader import ClipReader

Ways = dict[str, Callable[[], Iterator[Any]]]


def _has(*modules: str) -> bool:
  """Whether all can be imported; says it where one cannot."""
  for module in modules:
    try:
      importlib.import_module(module)
    except Exception as error:  # a library that does not load is left out too
      print(f"left out: {module} ({type(error).__name__}: {error})"[:200])
      return False
  return True


def dmvr(
  reader: ClipReader, settings: Sampling, B: int, work: Path
) -> Callable[[], Iterator[Any]]:
  """Writes SequenceExamples to a TFRecord; returns the way to read it."""
  path = str(work / "sequence_examples.tfrecord")
  with tf.io.TFRecordWriter(path) as writer:
    for index in range(len(reader)):
      (record,) = reader.read([index])
      example = tf.train.SequenceExample()
      for name in ("width", "height"):
        feature = example.context.feature[name]
        feature.int64_list.value.append(record[name])
      frames = example.feature_lists.feature_list["image/encoded"]
      for jpeg in record["frames"]:
        frames.feature.add().bytes_list.value.append(jpeg)
      writer.write(example.SerializeToString())
  T, S = settings.num_frames, settings.image_size
  integer = tf.io.FixedLenFeature([], tf.int64)

  def one(p, data):
    context, sequence = tf.io.parse_single_sequence_example(
      data,
      {"width": integer, "height": integer},
      {"image/encoded": tf.io.FixedLenSequenceFeature([], tf.string)},
    )
    stored = sequence["image/encoded"]

    def chosen(p, count, width, height):
      rng = sampling.generator(0, int(p))
      frames = sampling.sample_frames(settings, int(count), rng)
      box = sampling.sample_crop(settings, int(width), int(height), rng)
      return frames, box

    frames, box = tf.numpy_function(
      chosen,
      [p, tf.size(stored), context["width"], context["height"]],
      [tf.int64, tf.int32],
    )
    jpegs = tf.ensure_shape(tf.gather(stored, frames), [T])
    return frames_lib.decode(jpegs, box, S, "bilinear")

  def way():
    dataset = tf.data.TFRecordDataset(path).repeat().enumerate()
    dataset = dataset.map(one, num_parallel_calls=clip_cache.THREADS)
    options = tf.data.Options()
    options.autotune.enabled = False
    return (
      dataset.batch(B).prefetch(4).with_options(options).as_numpy_iterator()
    )

  return way


def grain(
  reader: ClipReader, settings: Sampling, B: int, draw: Callable
) -> Ways:
  """Grain's threads over the same records, decoded in the same way."""
  if not _has("grain"):
    return {}
  import grain

  T, S = settings.num_frames, settings.image_size
  decode = tf.function(
    lambda jpegs, box: frames_lib.decode(jpegs, box, S, "bilinear"),
    input_signature=[
      tf.TensorSpec([T], tf.string),
      tf.TensorSpec([4], tf.int32),
    ],
  )

  def one(p):
    jpegs, box = draw(reader, settings, p)
    return decode(tf.constant(jpegs), tf.constant(box)).numpy()

  def way():
    dataset = grain.MapDataset.range(2**30).map(one)
    options = grain.ReadOptions(
      num_threads=clip_cache.THREADS, prefetch_buffer_size=4 * B
    )
    return iter(dataset.to_iter_dataset(options).batch(B))

  return {"grain": way}


def on_videos(manifest: str, settings: Sampling, B: int) -> Ways:
  """PyTorch's DataLoader over the videos themselves, by decoder."""
  if not _has("torch"):
    return {}
  with open(manifest, newline="", encoding="utf-8") as file:
    folder = Path(manifest).parent
    videos = [str(folder / row["video"]) for row in csv.DictReader(file)]
  decoders = {
    "torch, PyAV": (("av",), _read_with_pyav),
    "torch, decord": (("decord",), _read_with_decord),
    "torch, OpenCV": (("cv2",), _read_with_opencv),
    "torch, torchcodec": (("torchcodec.decoders",), _read_with_torchcodec),
  }
  return {
    name: _loader(videos, read, settings, B)
    for name, (modules, read) in decoders.items()
    if _has(*modules)
  }


class _Videos:
  """A map-style data set of PyTorch: random crops of frames, uint8."""

  def __init__(self, videos, read, settings):
    self._videos, self._read, self._settings = videos, read, settings

  def __len__(self):
    return 2**20

  def __getitem__(self, p):
    import torch

    rng = sampling.generator(0, p)
    frames = self._read(
      self._videos[p % len(self._videos)],
      lambda count: sampling.sample_frames(self._settings, count, rng),
    )
    _, H, W, _ = frames.shape
    y, x, h, w = sampling.sample_crop(self._settings, W, H, rng)
    crop = torch.from_numpy(
      np.ascontiguousarray(frames[:, y : y + h, x : x + w])
    )
    size = [self._settings.image_size] * 2
    return torch.nn.functional.interpolate(
      crop.permute(0, 3, 1, 2), size, mode="bilinear"
    )


def _loader(videos, read, settings, B):
  def way():
    import torch

    loader = torch.utils.data.DataLoader(
      _Videos(videos, read, settings),
      batch_size=B,
      num_workers=clip_cache.THREADS,
      multiprocessing_context="spawn",  # TensorFlow's threads do not fork
    )
    return iter(loader)

  return way


def _read_with_pyav(path, choose):
  import av

  with av.open(path) as container:
    stream = container.streams.video[0]
    stream.thread_type = "NONE"
    chosen = choose(stream.frames)
    wanted, found = set(chosen.tolist()), {}
    for t, frame in enumerate(container.decode(stream)):
      if t in wanted:
        found[t] = frame.to_ndarray(format="rgb24")
      if t >= chosen[-1]:
        break
  return np.stack([found[t] for t in chosen.tolist()])


def _read_with_decord(path, choose):
  import decord

  video = decord.VideoReader(path, num_threads=1)
  return video.get_batch(choose(len(video))).asnumpy()


def _read_with_opencv(path, choose):
  import cv2

  video = cv2.VideoCapture(path)
  chosen = choose(int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
  wanted, found = set(chosen.tolist()), {}
  for t in range(int(chosen[-1]) + 1):
    video.grab()
    if t in wanted:
      found[t] = cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB)
  video.release()
  return np.stack([found[t] for t in chosen.tolist()])


def _read_with_torchcodec(path, choose):
  from torchcodec.decoders import VideoDecoder

  video = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC")
  chosen = choose(len(video)).tolist()
  return video.get_frames_at(indices=chosen).data.numpy()
