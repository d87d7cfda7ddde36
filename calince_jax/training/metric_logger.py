"""What is watched of a run: a progress line, its files, a clu writer.

WORKDIR/metrics.jsonl   the metrics of every log_every-th step
WORKDIR/events.jsonl    what happened: starts, stops, skipped steps, alarms
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

# Above this share of the time spent waiting for data, say what to do.
WAIT_ADVICE = 0.1


class Monitor:
  """Counts time and writes what is logged; one host of a run has one."""

  def __init__(
    self,
    workdir: str,
    *,
    first_step: int,
    total_steps: int,
    batch_size: int,
    writer: Any = None,
  ):
    """Opens WORKDIR/metrics.jsonl, and drops what lies after `first_step`.

    Args:
      workdir: of the run.
      first_step: steps that are done already.
      total_steps: of the run.
      batch_size: the global one.
      writer: a clu MetricWriter, or None.
    """
    self._total = total_steps
    self._batch_size = batch_size
    self._writer = writer
    self._begin = self._last = time.monotonic()
    self._last_step = self._first_step = first_step
    self._waited = 0.0
    self._once: dict[str, float] = {}  # for the next row alone
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
    """Says how long it took until the first step was done, and starts anew."""
    seconds = time.monotonic() - self._begin
    print(f"time to first step {seconds:.1f} s", flush=True)
    self._once = {"seconds_to_first_step": seconds}
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
    row, self._once = row | self._once, {}
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

  def note(self, step: int, event: str, words: str = "", **facts: Any) -> None:
    """Writes an event, and prints `warning: WORDS` where there are any.

    Args:
      step: the last one that is done.
      event: its kind, one word.
      words: for the person.
      facts: more of it, fit for JSON.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    row = {"time": now, "step": step, "event": event}
    row |= {"words": words} if words else {}
    self._events.append(json.dumps(row | facts))
    if words:
      print(f"warning: {words}", flush=True)

  def evaluated(
    self, step: int, found: Mapping[str, float], chance: Mapping[str, float]
  ) -> None:
    """Prints the heart of an evaluation during training.

    Args:
      step: that it is of.
      found: `SPLIT/t2v_R@1` and the like, and what PairStatistics says.
      chance: `SPLIT/t2v_R@1` and the like of random scores.
    """
    parts = []
    for split in dict.fromkeys(name.split("/")[0] for name in chance):
      t2v, v2t = (f"{split}/{way}_R@1" for way in ("t2v", "v2t"))
      parts.append(
        f"{split} t2v R@1 {found[t2v]:.1f} v2t R@1 {found[v2t]:.1f}"
        f" (chance {chance[t2v]:.1f})"
      )
    if "pairs/auc" in found:
      parts.append(f"score AUC {found['pairs/auc']:.2f}")
    print(f"eval {step}: {'  '.join(parts)}", flush=True)

  def close(self) -> None:
    """Flushes everything."""
    if self._writer is not None:
      self._writer.close()


def _step(line):
  """Of a row of metrics.jsonl; one that is damaged is dropped."""
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
