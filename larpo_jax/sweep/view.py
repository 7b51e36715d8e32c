"""What a terminal shows of a sweep while it runs, and its last words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import contextlib
import json
import pathlib
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

from larpo_jax.report.collect import METRICS
from larpo_jax.runs import read
from larpo_jax.sweep import launch
from larpo_jax.sweep.launch import Status

STATES = ("done", "running", "elsewhere", "waiting", "failed")


class View:
  """A table that is redrawn on a terminal while `drawn` is entered; elsewhere a line a change."""

  def __init__(self, directory: pathlib.Path, slots: int, metric: str, console: Console):
    self._directory, self._slots, self._metric = directory, slots, metric
    self._console, self._said, self._began = console, "", time.monotonic()
    self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
    self.drawn = contextlib.nullcontext() if self._live is None else self._live

  def show(self, statuses: Sequence[Status]) -> None:
    """Draws what the statuses say."""
    counts = Counter(status.state for status in statuses)
    line = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    if self._live is not None:
      self._live.update(self._table(statuses, line))
    elif line != self._said:
      self._said = line
      seconds = time.monotonic() - self._began
      best = self._best(statuses)
      self._console.print(f"{seconds:.0f} s: {line}{self._left(statuses)}{best}", soft_wrap=True)

  def _table(self, statuses: Sequence[Status], line: str) -> Table:
    title = f"{line}{self._left(statuses)}{self._best(statuses)}"
    table = Table("point", "stage", "step", "seconds", title=title, title_justify="left")
    for status in statuses:
      if status.state == "running":
        stage, step = _progress(self._directory / status.point.name / "metrics.jsonl")
        seconds = time.monotonic() - status.began
        table.add_row(status.point.name, stage, step, f"{seconds:.0f}")
    return table

  def _left(self, statuses: Sequence[Status]) -> str:
    """How long the rest takes, from what has finished here."""
    took = [s.seconds for s in statuses if s.state == "done" and s.seconds]
    open_ = [s for s in statuses if s.state in ("running", "waiting", "elsewhere")]
    if not took or not open_:
      return ""
    mean = sum(took) / len(took)
    rest = sum(max(mean - s.elapsed(), 0) if s.state == "running" else mean for s in open_)
    return f", about {rest / min(self._slots, len(open_)) / 60:.1f} min left"

  def _best(self, statuses: Sequence[Status]) -> str:
    found = scores(self._directory, statuses, self._metric)
    if not found:
      return ""
    name, (metric, value) = max(found.items(), key=lambda item: item[1][1])
    return f"; best {metric} {value:.4g}: {name}"


def scores(
  directory: pathlib.Path, statuses: Sequence[Status], metric: str = ""
) -> dict[str, tuple[str, float]]:
  """name -> (metric, value) of the finished points that have it."""
  found = {}
  for status in statuses:
    if status.state == "done":
      after = launch.results(directory, status.point)["after"]
      names = [name for name in ((metric,) if metric else METRICS) if name in after]
      if names:
        found[status.point.name] = (names[0], float(after[names[0]]))
  return found


def last_words(directory: pathlib.Path, statuses: Sequence[Status], console: Console) -> None:
  """Each failed point with the end of its log."""
  for status in statuses:
    if status.state == "failed":
      where = directory / status.point.name / read.LOG
      console.print(f"[bold red]failed[/] {status.point.name} ({where}):", soft_wrap=True)
      for line in launch.last_lines(directory, status.point):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _progress(metrics: pathlib.Path) -> tuple[str, str]:
  """Stage and step of the last row of metrics."""
  try:
    with metrics.open("rb") as file:
      file.seek(max(0, metrics.stat().st_size - 20_000))
      row = json.loads(file.read().splitlines()[-1])
    return str(row["stage"]), str(row["step"])
  except (OSError, ValueError, KeyError, IndexError):
    return "starting", ""
