"""Writes the metrics and events of a run, and prints its progress.

WORKDIR/metrics.jsonl   the metrics of every log_every-th step
WORKDIR/events.jsonl    events: starts, ends, skipped steps, warnings
"""

import contextlib
import datetime
import json
import math
import resource
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from calince_jax.files import LineFile

# Above this share of time spent waiting for data, advice is printed.
WAIT_ADVICE = 0.1


class MetricLogger:
  """Measures time, and writes metrics and events; process 0 has one."""

  def __init__(
    self,
    workdir: str,
    *,
    first_step: int,
    total_steps: int,
    batch_size: int,
    writer: Any = None,
  ):
    """Opens the files, and drops the rows of metrics.jsonl after `first_step`.

    Args:
      workdir: run folder.
      first_step: number of steps that are done already.
      total_steps: number of steps of the run.
      batch_size: of the global batch.
      writer: a clu MetricWriter, or None.
    """
    self._total = total_steps
    self._batch_size = batch_size
    self._writer = writer
    self._begin = self._last = time.monotonic()
    self._last_step = self._first_step = first_step
    self._waited = 0.0
    self._next_row: dict[str, float] = {}  # more columns of the next row
    self._rows = LineFile(
      epath.Path(workdir) / "metrics.jsonl",
      lambda line: _step(line) <= first_step,
    )
    self._events = LineFile(epath.Path(workdir) / "events.jsonl")

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time inside as waiting for data."""
    start = time.monotonic()
    yield
    self._waited += time.monotonic() - start

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """The time inside counts neither as training nor as waiting."""
    start = time.monotonic()
    yield
    self._last += time.monotonic() - start

  def first_step_done(self) -> None:
    """Prints the time to the first step, and begins to measure steps."""
    seconds = time.monotonic() - self._begin
    print(f"time to first step {seconds:.1f} s", flush=True)
    self._next_row = {"seconds_to_first_step": seconds}
    self._last, self._waited = time.monotonic(), 0.0
    self._last_step = self._first_step + 1

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes the metrics of `step`, scalars and histograms (1-D arrays)."""
    now = time.monotonic()
    elapsed = max(now - self._last, 1e-9)
    steps = max(step - self._last_step, 1)
    rate = steps / elapsed
    row = {name: _plain(value) for name, value in metrics.items()}
    row |= {
      "examples_per_second": rate * self._batch_size,
      "data_wait_share": min(self._waited / elapsed, 1.0),
      "resident_memory_mib": resident_memory_mib(),
    }
    row, self._next_row = row | self._next_row, {}
    self._rows.append(json.dumps({"step": step, **row}))
    self._print(step, row, (self._total - step) / rate)
    if self._writer is not None:
      scalars = {k: v for k, v in row.items() if isinstance(v, (int, float))}
      self._writer.write_scalars(step, scalars)
    self._last, self._last_step, self._waited = now, step, 0.0

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
    print(
      f"step {step}/{self._total}  {'  '.join(terms)}"
      f"  acc {row['in_batch_accuracy']:.2f}"
      f"  {row['examples_per_second']:.0f} examples/s"
      f"  data wait {row['data_wait_share']:.0%}"
      f"  ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}",
      flush=True,
    )
    if row["data_wait_share"] > WAIT_ADVICE and step - self._first_step > 100:
      print(
        "advice: training waits for data; prepare at a smaller --short_side or"
        " --frame_rate, or give the host more cores",
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
  except (ValueError, KeyError, TypeError, RecursionError):
    return math.inf


def resident_memory_mib() -> float:
  """The largest resident set of this process so far, in MiB (Linux)."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _plain(value):
  value = np.asarray(value)
  return value.item() if value.ndim == 0 else value.tolist()
