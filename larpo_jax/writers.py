"""Metrics of a run: metrics.jsonl is the truth, trackers are views of it; and progress bars."""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
from pathlib import Path
import sys
import time
from types import TracebackType
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from larpo_jax import tracking
from larpo_jax import workdir as files

METRICS = "metrics.jsonl"


class Writer:
  """Appends rows {"stage", "step", name: number} to workdir/metrics.jsonl and to its views.

  The views are TensorBoard and, where $LARPO_WANDB names a project, Weights & Biases.

  Process 0 writes, the others do nothing. A number that is not finite is written as its name,
  "nan", "inf" or "-inf", so that every line is valid JSON.
  """

  def __init__(self, workdir: str | os.PathLike, environment: Mapping[str, str] = os.environ):
    """Raises OSError where the workdir cannot be written. A torn last line is removed.

    Raises ValueError where Weights & Biases is asked for and not installed.
    """
    self.workdir = Path(workdir)
    self._path = self.workdir / METRICS
    self._writes = jax.process_index() == 0
    self._sinks: list[tracking.Sink] = []
    if self._writes:
      self.workdir.mkdir(parents=True, exist_ok=True)
      rows = files.read_jsonl(self._path)
      self._replace(rows)
      self._sinks = tracking.sinks(self.workdir, environment, rows)
      self._file = self._path.open("a", encoding="utf-8")

  def write(self, step: int, metrics: Mapping[str, Any], stage: str = "train") -> None:
    """One row: what is known of a step. A step may have several rows; read puts them together.

    Raises ValueError on a value that is not one number.
    """
    if not self._writes:
      return
    numbers = {name: _number(name, value) for name, value in metrics.items()}
    row = files.plain({"stage": stage, "step": int(step), **numbers})
    try:
      self._file.write(json.dumps(row) + "\n")
      self._file.flush()
    except OSError as error:
      raise files.unwritten(error, self._path, 1000) from error
    for sink in self._sinks:
      sink.write(stage, int(step), numbers)

  def rewind(self, step: int, stage: str = "train") -> None:
    """Forgets what is after step in a stage: a run that goes on from there writes it again."""
    if not self._writes:
      return
    rows = files.read_jsonl(self._path)
    self._file.close()
    self._replace([row for row in rows if row["stage"] != stage or row["step"] <= step])
    self._file = self._path.open("a", encoding="utf-8")
    for sink in self._sinks:
      sink.rewind(stage, step)

  def close(self) -> None:
    """Flushes and closes all files."""
    if self._writes:
      self._file.close()
      for sink in self._sinks:
        sink.close()

  def _replace(self, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not self._path.exists() or self._path.read_text(encoding="utf-8", errors="replace") != text:
      files.write_text(self._path, text)


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """One row for each stage and step, in the order in which they began; later values win."""
  rows: dict[tuple[str, int], dict[str, Any]] = {}
  for row in files.read_jsonl(Path(workdir) / METRICS):
    known = rows.setdefault((row["stage"], row["step"]), {})
    known.update(
      {k: v if k == "stage" or not isinstance(v, str) else float(v) for k, v in row.items()}
    )
  return list(rows.values())


def _number(name: str, value: Any) -> float | int:
  array = np.asarray(value)
  if array.size != 1 or (array.dtype.kind not in "biuf" and str(array.dtype) != "bfloat16"):
    raise ValueError(f"metric {name!r} must be one number; got {array.dtype}{list(array.shape)}")
  number = array.item()
  return number if isinstance(number, int) and not isinstance(number, bool) else float(number)


class Progress:
  """A progress bar of one stage: share done, throughput, time left and the latest metrics.

  On a terminal a bar; elsewhere a line about every ten seconds; on processes other than 0 nothing.
  """

  def __init__(
    self, description: str, *, total: int, start: int = 0, unit: str = "step", every: float = 10.0
  ):
    """total and start count units; every is seconds between lines where there is no terminal."""
    self._description, self._total, self._unit, self._every = description, total, unit, every
    self._shows = jax.process_index() == 0
    self._bar: tqdm | None = None
    self._done = self._told = start  # _told: at the last line
    self._said = time.monotonic()
    self._began = self._since = 0.0  # of the first update: what compiles before it is no rate
    self._sums: dict[str, float] = {}
    self._metrics: dict[str, float] = {}
    if self._shows and sys.stderr.isatty():
      self._bar = tqdm(
        desc=description, total=total, initial=start, unit=unit, dynamic_ncols=True, file=sys.stderr
      )

  def __enter__(self) -> Progress:
    """Returns itself."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    """Leaves the finished bar or a last line."""
    if self._bar is not None:
      self._bar.close()
    elif self._shows and self._done > self._told:
      self._say()

  def update(self, done: int, *, tokens: int = 0, responses: int = 0, **metrics: float) -> None:
    """done: units finished by now, counted from the stage's own start; tokens, responses: of late.

    metrics (loss, accuracy, ...) are shown as they are.
    """
    step, self._done, self._metrics = done - self._done, done, metrics
    if self._began:
      for name, count in (("tokens", tokens), ("responses", responses)):
        self._sums[name] = self._sums.get(name, 0) + count
    else:
      self._began, self._since = time.monotonic(), done
    if self._bar is not None:
      self._bar.set_postfix_str(", ".join(self._shown()), refresh=False)
      self._bar.update(step)
    elif self._shows and time.monotonic() - self._said >= self._every:
      self._say()

  def _shown(self) -> list[str]:
    seconds = max(time.monotonic() - self._began, 1e-9)
    rates = [f"{_short(n / seconds)} {name}/s" for name, n in self._sums.items() if n]
    return [*rates, *(f"{name} {value:.4g}" for name, value in self._metrics.items())]

  def _say(self) -> None:
    self._said, self._told = time.monotonic(), self._done
    rate = (self._done - self._since) / max(self._said - self._began, 1e-9)
    left = [f"{(self._total - self._done) / rate:.0f} s left"] if rate else []
    parts = [f"{self._done}/{self._total} {self._unit}", *left, *self._shown()]
    print(f"{self._description}: {', '.join(parts)}", file=sys.stderr, flush=True)


def _short(number: float) -> str:
  for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if number >= size:
      return f"{number / size:.3g}{letter}"
  return f"{number:.3g}"
