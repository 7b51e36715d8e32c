"""Where the rows of metrics.jsonl go too: TensorBoard always, Weights & Biases where asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import json
import os
from pathlib import Path
import secrets
import sys
import time
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from larpo_jax import workdir as files

EVENTS = "tensorboard"
WANDB = "LARPO_WANDB"  # of the environment: the project; WANDB_MODE and the like are wandb's own
WANDB_ID = "wandb.id"
PATIENCE = 60  # seconds for wandb to send the rest: a run that was told to stop has not long

Numbers = Mapping[str, float | int]
Rows = Sequence[Mapping[str, Any]]  # as metrics.jsonl has them


class Sink(Protocol):
  """A view of metrics.jsonl."""

  def write(self, stage: str, step: int, numbers: Numbers) -> None:
    """One row."""

  def rewind(self, stage: str, step: int) -> None:
    """What is after step in a stage comes again."""

  def close(self) -> None:
    """There are no more rows."""


def sinks(workdir: Path, environment: Mapping[str, str], rows: Rows) -> list[Sink]:
  """Those of a run that has written rows before.

  Raises ValueError where $LARPO_WANDB names a project and wandb is missing.
  """
  project = environment.get(WANDB, "")
  return [TensorBoard(workdir), *([WandB(workdir, project, rows)] if project else [])]


class TensorBoard:
  """Event files in workdir/tensorboard/STAGE."""

  def __init__(self, workdir: Path):
    self._directory = workdir / EVENTS
    self._events: dict[str, EventsWriter] = {}
    self._purge: dict[str, int] = {}

  def write(self, stage: str, step: int, numbers: Numbers) -> None:
    """One event."""
    values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
    events = self._of(stage)
    events.write_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))
    events.flush()  # tensorboardX's own writer would lose its queue to a kill

  def rewind(self, stage: str, step: int) -> None:
    """Another file, from whose first step on TensorBoard forgets what the earlier ones say."""
    self._purge[stage] = step + 1
    if stage in self._events:
      self._events.pop(stage).close()

  def close(self) -> None:
    """Closes the files."""
    for events in self._events.values():
      events.close()

  def _of(self, stage: str) -> EventsWriter:
    """TensorBoard forgets, at a session's start, what earlier files say of its step and after."""
    if stage not in self._events:
      directory = self._directory / stage
      directory.mkdir(parents=True, exist_ok=True)
      # The suffix, as two files that start in one second would be one.
      events = EventsWriter(str(directory / "events"), filename_suffix=f".{time.time_ns()}")
      if stage in self._purge:
        start = SessionLog(status=SessionLog.START)
        events.write_event(Event(step=self._purge[stage], file_version="brain.Event:2"))
        events.write_event(Event(step=self._purge[stage], session_log=start))
      self._events[stage] = events
    return self._events[stage]


class WandB:
  """A run of Weights & Biases with metrics STAGE/NAME over STAGE/step, and the redacted config.

  The same workdir goes on with the same run, whose id is in workdir/wandb.id; a run that was begun
  without W&B sends first what metrics.jsonl has. What W&B has it cannot forget: rows that a resumed
  run computes again are there twice, with the same step and the same numbers but for timings.
  Whatever breaks in wandb ends the sink with a warning, not the run.
  """

  def __init__(self, workdir: Path, project: str, rows: Rows):
    """Raises ValueError where wandb is not installed."""
    try:
      import wandb
    except ImportError as error:
      raise ValueError(
        "Weights & Biases was asked for and cannot be imported: install the extra track "
        f"(pip install 'larpo_jax[track]'), or run without --wandb and ${WANDB} ({error})"
      ) from error
    self._run: Any = None
    self._stages: set[str] = set()
    self._guarded(lambda: self._start(wandb, workdir, project, rows))

  def write(self, stage: str, step: int, numbers: Numbers) -> None:
    """One row."""
    if self._run is not None:
      self._guarded(lambda: self._log(stage, step, numbers))

  def rewind(self, stage: str, step: int) -> None:
    """Nothing: see the class."""

  def close(self) -> None:
    """Waits a while for what is not sent yet; with an exception on its way, the run has failed."""
    if self._run is not None:
      failed = sys.exc_info()[0] is not None
      self._guarded(lambda: self._run.finish(exit_code=int(failed)))
      self._run = None

  def _start(self, wandb: Any, workdir: Path, project: str, rows: Rows) -> None:
    path = workdir / WANDB_ID
    new = not path.exists()
    if new:
      files.write_text(path, secrets.token_hex(4) + "\n")
    config = workdir / files.CONFIG
    self._run = wandb.init(
      project=project,
      id=path.read_text().strip(),
      resume="allow",
      dir=os.fspath(workdir),
      name=workdir.name,
      config=json.loads(config.read_text()) if config.exists() else {},
      # Neither the command line nor the repository's address nor what is printed: unlike
      # config.json, they are not redacted.
      settings=wandb.Settings(
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_meta=True,
        finish_timeout=PATIENCE,
      ),
    )
    for row in rows if new else ():
      numbers = {name: float(row[name]) for name in row if name not in ("stage", "step")}
      self._log(row["stage"], row["step"], numbers)

  def _log(self, stage: str, step: int, numbers: Numbers) -> None:
    if stage not in self._stages:
      self._stages.add(stage)
      self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    named = {f"{stage}/{name}": value for name, value in numbers.items()}
    self._run.log({**named, f"{stage}/step": step})

  def _guarded(self, act: Callable[[], None]) -> None:
    """Whatever wandb raises, its own errors or those of sockets and of its settings."""
    try:
      act()
    except Exception as error:
      self._run = None
      said = (str(error).strip().splitlines() or [type(error).__name__])[0]
      print(
        f"larpo_jax: warning: Weights & Biases gets no more rows ({said}); metrics.jsonl has all",
        file=sys.stderr,
        flush=True,
      )
