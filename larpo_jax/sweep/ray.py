"""A launcher: actors of Ray, each of which runs one process on a node of the cluster.

Ray ends the jobs of a launcher that is killed: they go on from their last checkpoints when the same
command is given again. Nodes need this package, and the sweep's directory at the same path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import os
import pathlib
import socket
import subprocess
import sys
import threading
from typing import Any

from larpo_jax.sweep import local
from larpo_jax.sweep.local import SAVED

OPTIONS = ("num_cpus", "num_gpus", "memory")  # of an actor; all else are a cluster's own resources
# What a run reads of its environment: a node has its own for all else.
CARRIED = ("LARPO_", "JAX_", "XLA_", "PYTHONPATH")
STORE = (
  100 * 2**20
)  # bytes of shared memory of a cluster that is started here; nothing is put there


class Runner:
  """Lives on a node and runs one command there."""

  def __init__(self) -> None:
    """Nothing runs yet."""
    self._lock, self._stopped = threading.Lock(), False
    self._process: subprocess.Popen[bytes] | None = None

  def began(self) -> None:
    """Answers as soon as it lives."""

  def run(self, command: Sequence[str], log: str, environment: Mapping[str, str]) -> int:
    """The exit code of the command, whose output is appended to log."""
    with self._lock:
      if self._stopped:
        return SAVED
      with open(log, "ab") as output:
        self._process = subprocess.Popen(
          command,
          stdin=subprocess.DEVNULL,
          stdout=output,
          stderr=output,
          env={**os.environ, **environment},
        )
    return self._process.wait()

  def stop(self) -> None:
    """SIGTERM, on which a run saves and stops."""
    with self._lock:
      self._stopped = True
      if self._process is not None:
        self._process.terminate()


@dataclasses.dataclass
class Job:
  """An actor, and the promises of its life and of its exit code."""

  actor: Any
  began: Any
  code: Any
  cancelled: bool = False


class Ray:
  """The cluster of RAY_ADDRESS, or of the resource "address", or one that is started here."""

  def __init__(self, resources: Mapping[str, str], jobs: int = 0):
    """resources: num_cpus, num_gpus, memory in bytes, and a cluster's own, of each job.

    jobs: at most so many at a time; 0: as many as the cluster takes. Raises ValueError where Ray is
    missing or a resource no number, OSError where no cluster answers.
    """
    self._wanted = {key: number(key, value) for key, value in resources.items() if key != "address"}
    self._ray = _connected(resources.get("address") or os.environ.get("RAY_ADDRESS") or "local")
    self._environment = {k: v for k, v in os.environ.items() if k.startswith(CARRIED)}
    self.slots = jobs or sys.maxsize
    self._running: list[Job] = []

  def free(self, config: Any) -> bool:
    """Whether another job may be submitted now; Ray has a queue of its own."""
    self._running = [job for job in self._running if not self._ready(job.code)]
    return len(self._running) < self.slots

  def submit(self, command: Sequence[str], config: Any, log: pathlib.Path) -> Job:
    """Starts a command as soon as there is room for it."""
    asked = options(config, self._ray.cluster_resources(), self._wanted)
    actor = self._ray.remote(max_concurrency=3, **asked)(Runner).remote()
    code = actor.run.remote(list(command), str(log), self._environment)
    job = Job(actor, actor.began.remote(), code)
    self._running.append(job)
    return job

  def poll(self, job: Job) -> int | None:
    """Its exit code; None while it waits or runs. One whose node is lost has failed."""
    if not self._ready(job.code):
      return None
    try:
      return self._ray.get(job.code)
    except self._ray.exceptions.RayError as error:
      print(f"Ray has lost a job: {str(error).strip().splitlines()[0]}", file=sys.stderr)
      return SAVED if job.cancelled else 1
    finally:
      self._ray.kill(job.actor)  # gives back what it had

  def cancel(self, job: Job) -> None:
    """SIGTERM, on which a run saves; one that still waits for room is taken back."""
    if job.cancelled:
      return
    job.cancelled = True
    if self._ready(job.began):
      job.actor.stop.remote()
    else:
      self._ray.kill(job.actor)

  def _ready(self, promise: Any) -> bool:
    return bool(self._ray.wait([promise], timeout=0)[0])


def options(
  config: Any, cluster: Mapping[str, float], wanted: Mapping[str, float]
) -> dict[str, Any]:
  """What a job's actor asks for: what is wanted, and else GPUs by its mesh, or cores and memory."""
  found: dict[str, Any] = {"num_cpus": min(local.CORES, cluster.get("CPU", local.CORES))}
  if cluster.get("GPU", 0) > 0:
    found["num_gpus"] = local.device_count(config)
  else:
    found["memory"] = local.MEMORY
  found |= {key: value for key, value in wanted.items() if key in OPTIONS}
  own = {key: value for key, value in wanted.items() if key not in OPTIONS}
  return found | ({"resources": own} if own else {})


def number(key: str, text: str) -> float:
  """Raises ValueError that names the key where it is none."""
  try:
    value = float(text)
  except ValueError as error:
    raise ValueError(f"--resources {key}={text}: {text!r} is no number") from error
  return int(value) if value == int(value) else value


def _connected(address: str) -> Any:
  """The module ray, connected. No dashboard, no telemetry."""
  os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
  try:
    import ray
  except ImportError as error:
    raise ValueError("the launcher for Ray needs it: pip install 'larpo_jax[ray]'") from error
  here: dict[str, Any] = {}
  if address == "local":
    here = dict(include_dashboard=False, object_store_memory=STORE)
  host, _, port = address.rpartition(":")
  try:
    if port.isdigit():  # Ray itself would try for minutes
      socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
  except (OSError, RuntimeError, ValueError) as error:
    raise OSError(f"no cluster of Ray answers at {address!r}: {error}") from error
  return ray
