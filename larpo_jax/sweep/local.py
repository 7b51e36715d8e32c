"""A launcher: processes on this machine, each with devices of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
import os
import pathlib
import subprocess
from typing import Any, NamedTuple, Protocol

import psutil

CORES, MEMORY = 2, 2 * 2**30  # of a CPU, what a job gets where nothing is said
SAVED = (
  os.EX_TEMPFAIL
)  # a run's exit code when a signal stopped it: preemption.REQUEUE, without jax
GPUS = pathlib.Path("/proc/driver/nvidia/gpus")


class Launcher(Protocol):
  """Where the jobs of a sweep run; a job is whatever `submit` gives."""

  slots: int  # jobs at a time, at most

  def free(self, config: Any) -> bool:
    """Whether a job of that config may be submitted now."""

  def submit(self, command: Sequence[str], config: Any, log: pathlib.Path) -> Any:
    """Starts a command whose output is appended to log."""

  def poll(self, job: Any) -> int | None:
    """Its exit code; None while it runs."""

  def cancel(self, job: Any) -> None:
    """Asks it to save and stop; called until it has."""


class Job(NamedTuple):
  """A process, and the devices that it was given."""

  process: subprocess.Popen[bytes]
  devices: tuple[str, ...]


class Local:
  """So many processes at a time. GPUs are dealt out, as many to a job as its mesh has devices."""

  def __init__(self, jobs: int = 0, environment: Mapping[str, str] | None = None):
    """jobs: at most so many, which may then share GPUs; 0: as GPUs, or cores and memory, allow."""
    self._share = jobs > 0
    self._environment = dict(os.environ if environment is None else environment)
    self._devices = gpus(self._environment)
    self.slots = jobs or len(self._devices) or by_cores_and_memory()
    self._running: list[Job] = []

  def free(self, config: Any) -> bool:
    """Whether a job of that config may be submitted now."""
    self._running = [job for job in self._running if job.process.poll() is None]
    if len(self._running) >= self.slots:
      return False
    busy = {name for job in self._running for name in job.devices}
    idle = len(self._devices) - len(busy)
    return self._share or not busy or device_count(config) <= idle

  def submit(self, command: Sequence[str], config: Any, log: pathlib.Path) -> Job:
    """Starts a command; raises ValueError where its mesh has more devices than there are."""
    environment, dealt = self._environment, tuple[str, ...]()
    if self._devices:
      dealt = self._deal(config)
      environment = {**environment, "CUDA_VISIBLE_DEVICES": ",".join(dealt)}
    with log.open("ab") as output:
      process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        start_new_session=True,  # a terminal's Ctrl-C is for the launcher, which asks them to save
      )
    job = Job(process, tuple(dealt))
    self._running.append(job)
    return job

  def poll(self, job: Job) -> int | None:
    """Its exit code; None while it runs."""
    return job.process.poll()

  def cancel(self, job: Job) -> None:
    """SIGTERM, on which a run saves and stops."""
    if job.process.poll() is None:
      job.process.terminate()

  def _deal(self, config: Any) -> tuple[str, ...]:
    """The devices that fewest jobs have."""
    count = device_count(config)
    if count > len(self._devices):
      raise ValueError(f"a point's mesh has {count} devices, and there are {len(self._devices)}")
    load = {name: sum(name in job.devices for job in self._running) for name in self._devices}
    return tuple(sorted(self._devices, key=lambda name: load[name])[:count])


def device_count(config: Any) -> int:
  """How many devices the mesh of a config has; one where it takes what there is."""
  return math.prod(size for size in dict(config["mesh"]).values() if size > 0)


def gpus(environment: Mapping[str, str]) -> list[str]:
  """The GPUs that CUDA may use here."""
  if "CUDA_VISIBLE_DEVICES" in environment:
    return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
  return [str(number) for number, _ in enumerate(GPUS.iterdir())] if GPUS.is_dir() else []


def by_cores_and_memory() -> int:
  """How many jobs a machine without GPUs takes."""
  memory = psutil.virtual_memory().available  # with what the page cache would give back
  cores = len(os.sched_getaffinity(0))
  return max(1, min(cores // CORES, memory // MEMORY))
