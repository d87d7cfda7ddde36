"""Writes the metrics and events of a run, and prints its progress.

WORKDIR/metrics.jsonl   the metrics of every log_every-th step
WORKDIR/events.jsonl    events: starts, ends, skipped steps, warnings
"""

import datetime
import json
import math
import resource
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from calince_jax.files import LineFile
from calince_jax.training.wall_time import WallTime

# Above this share of time with idle devices, for want of data, advice is
# printed.
WAIT_ADVICE = 0.1
SPEED = ("examples_per_second", "examples_per_second_per_device", "mfu")


class MetricLogger:
  """Measures time, and writes metrics and events; process 0 has one."""

  def __init__(
    self,
    workdir: str,
    *,
    first_step: int,
    total_steps: int,
    batch_size: int,
    devices: int,
    times: WallTime,
    peak_rate: float | None = None,
    advice: str = "training waits for data",
    writer: Any = None,
  ):
    """Opens the files, and drops the rows of metrics.jsonl after `first_step`.

    Args:
      workdir: run folder.
      first_step: number of steps that are done already.
      total_steps: number of steps of the run.
      batch_size: of the global batch.
      devices: how many the run has.
      times: of this process, since its start.
      peak_rate: steps a second if the devices did nothing but the operations of
        the model at their highest rate; None: not known, and no MFU is written.
      advice: to print where steps wait for data.
      writer: a clu MetricWriter, or None.
    """
    self._total = total_steps
    self._batch_size, self._devices = batch_size, devices
    self._times, self._peak_rate = times, peak_rate
    self._advice = advice
    self._writer = writer
    self._begin = time.monotonic()
    self._last_step = self._first_step = first_step
    self._mark()
    self._next_row: dict[str, float] = {}  # more columns of the next row
    self._speed: dict[str, float] = {}  # of the last row
    self._rows = LineFile(
      epath.Path(workdir) / "metrics.jsonl",
      lambda line: _step(line) <= first_step,
    )
    self._events = LineFile(epath.Path(workdir) / "events.jsonl")

  def first_step_done(self) -> None:
    """Prints the time to the first step, and begins to measure steps."""
    seconds = time.monotonic() - self._begin
    print(f"time to first step {seconds:.1f} s", flush=True)
    self._next_row = {"seconds_to_first_step": seconds}
    self._mark()
    self._last_step = self._first_step + 1

  def _mark(self):
    """Begins an interval, whose rate does not depend on evaluations in it."""
    self._last = time.monotonic()
    self._before = {k: self._times.seconds(k) for k in ("data", "evaluation")}

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes the metrics of `step`, scalars and histograms (1-D arrays).

    With the rate since the last row, evaluations left out; the model FLOPs
    utilisation (`mfu`, as in the PaLM paper, arXiv 2204.02311, appendix B)
    where the devices' peak is known; and where the time since the start went.
    """
    now = time.monotonic()
    waited, evaluated = (
      self._times.seconds(k) - seconds for k, seconds in self._before.items()
    )
    elapsed = max(now - self._last - evaluated, 1e-9)
    rate = max(step - self._last_step, 1) / elapsed
    row = {name: _plain(value) for name, value in metrics.items()}
    row |= {
      "examples_per_second": rate * self._batch_size,
      "examples_per_second_per_device": rate * self._batch_size / self._devices,
      **({"mfu": rate / self._peak_rate} if self._peak_rate else {}),
      "data_wait_share": min(waited / elapsed, 1.0),
      **self._times.shares(),
      "resident_memory_mib": resident_memory_mib(),
    }
    row, self._next_row = row | self._next_row, {}
    self._rows.append(json.dumps({"step": step, **row}))
    self._print(step, row, (self._total - step) / rate)
    if self._writer is not None:
      scalars = {k: v for k, v in row.items() if isinstance(v, (int, float))}
      self._writer.write_scalars(step, scalars)
    self._speed = {name: row[name] for name in SPEED if name in row}
    self._last_step = step
    self._mark()

  def speed(self) -> dict[str, float]:
    """Rate and MFU of the last row, and where the time went until now."""
    return self._speed | self._times.shares()

  def _print(self, step, row, seconds_left):
    terms = [
      f"{short} {row[name]:.3f}"
      for name, short in (
        ("loss", "loss"),
        ("correspondence", "corr"),
        ("contrastive", "nce"),
        ("predictive", "pred"),
      )
      if name in row
    ]
    left = int(seconds_left)
    speed = [f"{row['examples_per_second']:.0f} examples/s"]
    if self._devices > 1:
      speed.append(f"{row['examples_per_second_per_device']:.1f} a device")
    if "mfu" in row:
      speed.append(f"MFU {row['mfu']:.1%}")
    print(
      f"step {step}/{self._total}  {'  '.join(terms)}"
      f"  acc {row['in_batch_accuracy']:.2f}"
      f"  {'  '.join(speed)}"
      f"  data wait {row['data_wait_share']:.0%}"
      f"  goodput {row['goodput']:.0%}"
      f"  ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}",
      flush=True,
    )
    if row["data_wait_share"] > WAIT_ADVICE and step - self._first_step > 100:
      print(
        f"advice: {self._advice}",
        flush=True,
      )

  def event(
    self,
    step: int,
    event: str,
    message: str = "",
    *,
    warning: bool = True,
    **fields: Any,
  ) -> None:
    """Writes an event, and prints its message, if it has one.

    Args:
      step: number of steps that are done.
      event: kind of event, one word.
      message: for the person; the field `words` of the row.
      warning: whether it is printed as one.
      fields: further fields of the row, fit for JSON.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    row = {"time": now, "step": step, "event": event}
    row |= {"words": message} if message else {}
    self._events.append(json.dumps(row | fields))
    if message:
      print(f"warning: {message}" if warning else message, flush=True)

  def evaluated(
    self, step: int, metrics: Mapping[str, float], chance: Mapping[str, float]
  ) -> None:
    """Prints the main metrics of an in-training evaluation.

    Args:
      step: number of steps that are done.
      metrics: `SPLIT/t2v_R@1` and the like, and the pair statistics.
      chance: `SPLIT/t2v_R@1` and the like that random embeddings get.
    """
    parts = []
    for split in dict.fromkeys(name.split("/")[0] for name in chance):
      t2v, v2t = (f"{split}/{way}_R@1" for way in ("t2v", "v2t"))
      parts.append(
        f"{split} t2v R@1 {metrics[t2v]:.1f} v2t R@1 {metrics[v2t]:.1f}"
        f" (chance {chance[t2v]:.1f})"
      )
    if "pairs/auc" in metrics:
      parts.append(f"score AUC {metrics['pairs/auc']:.2f}")
    print(f"eval {step}: {'  '.join(parts)}", flush=True)

  def close(self) -> None:
    """Flushes everything."""
    if self._writer is not None:
      self._writer.close()


def _step(line):
  """The step of a row of metrics.jsonl; a damaged row counts as late."""
  try:
    return int(json.loads(line)["step"])
  except (ArithmeticError, ValueError, KeyError, TypeError, RecursionError):
    return math.inf


def resident_memory_mib() -> float:
  """The largest resident set of this process so far, in MiB (Linux)."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _plain(value):
  value = np.asarray(value)
  return value.item() if value.ndim == 0 else value.tolist()
