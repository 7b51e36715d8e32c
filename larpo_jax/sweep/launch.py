"""Runs what is missing of a sweep until nothing is; any number of launchers may.

The directories are the truth: a point is done when its results are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

from larpo_jax import preemption
from larpo_jax.runs import read
from larpo_jax.sweep import points as points_lib
from larpo_jax.sweep.local import Launcher
from larpo_jax.sweep.points import Point

RESOLVED = pathlib.Path(__file__).with_name("resolved.py")
LAST_LINES = 5
AGAIN = 10.0  # seconds until a point that another launcher runs is looked at again


@dataclasses.dataclass
class Status:
  """How a point stands."""

  point: Point
  state: str = "waiting"  # running, done, failed, elsewhere
  attempts: int = 0  # failures of this launcher
  began: float = 0.0
  seconds: float = 0.0  # that its last job took; its share, where others were in it
  due: float = 0.0  # not to be submitted before
  job: Any = None
  mates: Sequence[Status] = ()  # those that it shares a process with, itself among them

  def elapsed(self) -> float:
    """Seconds since its job began; its share, where others are in it."""
    sharing = sum(each.began == self.began for each in self.mates)
    return (time.monotonic() - self.began) / max(sharing, 1)


def launch(
  groups: Sequence[Sequence[Point]],
  directory: pathlib.Path,
  launcher: Launcher,
  *,
  retries: int = 1,
  show: Callable[[Sequence[Status]], None] = lambda statuses: None,
  guard: preemption.Guard | None = None,
  pause: float = 0.5,
) -> list[Status]:
  """Submits every point that is not done, and again where it failed, up to `retries` times.

  The points of a group share a job; one that failed is tried again alone. A point whose results
  are there is done. One that stopped on a signal goes on from its checkpoint and that is no
  failure; one that another launcher runs is waited for. When the guard is asked to stop, so are the
  jobs: they save, and what has not finished is left waiting. show gets the statuses whenever they
  were looked at.
  """
  statuses = []
  for group in groups:
    mates = [Status(point) for point in group]
    for each in mates:
      points_lib.written(each.point.config, config_path(directory, each.point))
      each.mates = mates
    statuses += mates
  while True:
    stopping = guard is not None and guard.poll(0)
    for status in statuses:
      _look(status, directory, launcher, retries, stopping)
      if status.state in ("waiting", "elsewhere") and not stopping:
        _submit(status, directory, launcher)
    show(statuses)
    if all(s.state in ("done", "failed") for s in statuses):
      return statuses
    if stopping and not any(s.state == "running" for s in statuses):
      return statuses
    time.sleep(pause)


def done(directory: pathlib.Path, point: Point) -> bool:
  """Whether a point's results are there."""
  return (directory / point.name / read.SUMMARY).exists()


def results(directory: pathlib.Path, point: Point) -> dict[str, dict[str, float]]:
  """What a finished point's run gave, before and after."""
  return json.loads((directory / point.name / read.SUMMARY).read_text())


def last_lines(directory: pathlib.Path, point: Point, count: int = LAST_LINES) -> list[str]:
  """The end of a point's log."""
  path = directory / point.name / read.LOG
  if not path.exists():
    return []
  with path.open("rb") as file:
    file.seek(max(0, path.stat().st_size - 10_000))
    return file.read().decode(errors="replace").strip().splitlines()[-count:]


def _look(
  status: Status, directory: pathlib.Path, launcher: Launcher, retries: int, stopping: bool
) -> None:
  """What became of a point since it was last looked at."""
  if status.state != "running":
    if status.state in ("waiting", "elsewhere") and done(directory, status.point):
      status.state = "done"
    return
  if stopping:
    launcher.cancel(status.job)
  code = launcher.poll(status.job)
  if code is None:
    return
  status.seconds, status.job = status.elapsed(), None
  if done(directory, status.point):
    status.state = "done"
  elif code == preemption.REQUEUE:
    status.state = "waiting"
  elif code == preemption.IN_USE:
    status.state, status.due = "elsewhere", time.monotonic() + AGAIN
  else:
    status.attempts += 1
    status.state = "failed" if status.attempts > retries and not stopping else "waiting"


def _submit(status: Status, directory: pathlib.Path, launcher: Launcher) -> None:
  """Starts a job for a point and what is waiting of its group."""
  if time.monotonic() < status.due or not launcher.free(status.point.config):
    return
  if any(each.state == "running" for each in status.mates):
    return
  mates = []
  for each in status.mates:
    apart = each is not status and (each.attempts or status.attempts)  # after a failure, alone
    if each.state in ("waiting", "elsewhere") and not apart:
      if read.running(directory / each.point.name):
        each.state, each.due = "elsewhere", time.monotonic() + AGAIN
      else:
        mates.append(each)
  if not mates:
    return
  names = [each.point.name for each in mates]
  for name in names:
    (directory / name).mkdir(parents=True, exist_ok=True)
  job = launcher.submit(
    _command(directory.absolute(), mates),
    status.point.config,
    directory.absolute() / names[0] / read.LOG,
  )
  began = time.monotonic()
  for each in mates:
    each.job, each.state, each.began = job, "running", began


def _command(directory: pathlib.Path, mates: Sequence[Status]) -> list[str]:
  """What runs a point, or several of a group."""
  first, *more = [each.point for each in mates]
  if more:
    names = [each.point.name for each in mates]
    return [sys.executable, "-m", "larpo_jax.sweep.together", f"--workdir={directory}", *names]
  command = [sys.executable, "-m", "larpo_jax.main"]
  command += [f"--config={RESOLVED}:{config_path(directory, first)}"]
  return [*command, f"--workdir={directory / first.name}"]


def config_path(directory: pathlib.Path, point: Point) -> pathlib.Path:
  """Where a point's config is written down."""
  return directory.absolute() / "configs" / f"{point.name}.json"
