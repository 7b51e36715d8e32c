"""A launcher: jobs of Slurm, submitted through submitit.

Slurm keeps the jobs, and they outlive the launcher: it finds them in the queue by their names,
which say the directory of the run. submitit keeps its scripts, its logs and its own pickles in
SWEEP/slurm; all that they hold of ours is a command, and this launcher never reads one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from larpo_jax.sweep.local import SAVED

STOPPED = (SAVED, -signal.SIGTERM)  # a run that has not begun in earnest dies of the signal
EVERY = 5.0  # seconds between two looks at the queue
LOST = 30.0  # seconds that a job's exit code may take to appear on a shared file system
PATIENCE = 600.0  # seconds that squeue may fail


@dataclasses.dataclass
class Job:
  """A job of Slurm."""

  number: str
  gone: float = math.inf  # since when it is not in the queue
  cancelled: float = -math.inf  # when it was last asked to stop


class Slurm:
  """As many jobs in the queue as there are points, or so many at a time."""

  def __init__(self, directory: pathlib.Path, options: Mapping[str, str], jobs: int = 0):
    """options: of sbatch, by its long names; "" for one without a value.

    Raises ValueError where submitit or Slurm is missing, and where options has no time.
    """
    if "time" not in options:
      raise ValueError("Slurm wants to know how long a job may take: --resources time=4:00:00")
    self.slots = jobs or sys.maxsize
    self._folder = directory.absolute() / "slurm"
    self._executor = _executor(self._folder)
    # A job that is preempted or out of time is told as a run is anywhere, and may go on.
    wanted = {"requeue": True, "signal": "TERM@90"}
    wanted |= {key: value if value else True for key, value in options.items()}
    self._executor.update_parameters(additional_parameters=wanted)
    self._queue: dict[str, str] = {}  # name -> number
    self._asked, self._answered = -math.inf, -math.inf
    self._running: set[str] = set()

  def free(self, config: Any) -> bool:
    """Whether another job may be submitted now."""
    return len(self._running) < self.slots

  def submit(self, command: Sequence[str], config: Any, log: pathlib.Path) -> Job:
    """Submits a command, or finds it in the queue where an earlier launcher has left it.

    Raises ValueError where sbatch refuses it, OSError where squeue does not answer.
    """
    name = _name(log.parent)
    self._look()
    if name not in self._queue:
      self._executor.update_parameters(job_name=name)
      try:
        job = self._executor.submit(run, list(command), str(log), str(self._folder))
      except Exception as error:  # submitit's own, with all that sbatch said
        raise ValueError(
          f"sbatch refuses the job: {str(error).strip().splitlines()[-1]}"
        ) from error
      self._queue[name] = job.job_id
    self._running.add(self._queue[name])
    return Job(self._queue[name])

  def poll(self, job: Job) -> int | None:
    """Its exit code; None while it is in the queue. One that vanished has failed."""
    self._look()
    code: int | None = None
    if job.number in self._queue.values():
      return None
    job.gone = min(job.gone, time.monotonic())
    with contextlib.suppress(OSError, ValueError):
      code = int(_code(self._folder, job.number).read_text())
    if code is None and job.cancelled > 0:
      code = SAVED
    if code is None and time.monotonic() - job.gone > LOST:
      code = 1
    if code is not None:
      self._running.discard(job.number)
    return code

  def cancel(self, job: Job) -> None:
    """Asks it to save and stop; takes it from the queue where it has not begun."""
    if time.monotonic() - job.cancelled < EVERY:
      return
    job.cancelled = time.monotonic()
    _said("scontrol", "update", f"JobId={job.number}", "Requeue=0")
    _said("scancel", "--state=PENDING", job.number)
    _said("scancel", "--signal=TERM", job.number)  # of the run, not of the script around it

  def _look(self) -> None:
    """Asks for the queue; what it was is believed for a while."""
    now = time.monotonic()
    if now - self._asked < EVERY:
      return
    self._asked = now
    said = _said("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i|%j")
    if said.returncode == 0:
      lines = [line.strip().split("|", 1) for line in said.stdout.splitlines() if "|" in line]
      self._queue, self._answered = {name: number for number, name in lines}, now
    elif now - self._answered > PATIENCE:
      reason = (said.stderr.strip().splitlines() or ["it says nothing"])[-1]
      raise OSError(
        f"squeue fails: {reason}; jobs that are in the queue go on, the same command finds them"
      )


def run(command: Sequence[str], log: str, folder: str) -> int:
  """What each task of a job does: the command, and then the job's exit code or its return.

  submitit calls it on a node, and lets SIGTERM pass, which the command hears as well. A job that
  has saved goes back to the queue, unless it was cancelled.
  """
  job, task = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_PROCID", "0")
  noted = _code(pathlib.Path(folder), job)
  if task == "0":
    noted.unlink(missing_ok=True)
  else:  # two nodes can not append to one file
    log = str(pathlib.Path(log).with_suffix(f".{task}.txt"))
  with open(log, "ab") as output:
    code = subprocess.run(
      command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
    ).returncode
  code = SAVED if code in STOPPED else code
  if task == "0":
    temporary = noted.with_suffix(".tmp")
    temporary.write_text(str(code))
    os.replace(temporary, noted)
    # One that Slurm requeues, or a user cancels, is completing by now.
    state = _said("squeue", "--noheader", "--format=%T", f"--jobs={job}").stdout.strip()
    if code == SAVED and state == "RUNNING":
      _said("scontrol", "requeue", job)
  sys.exit(code)


def _executor(folder: pathlib.Path) -> Any:
  try:
    import submitit
  except ImportError as error:
    raise ValueError(
      "the launcher for Slurm needs submitit: pip install 'larpo_jax[launch]'"
    ) from error
  try:
    return submitit.SlurmExecutor(folder)
  except RuntimeError as error:
    raise ValueError("no srun here: start the launcher where sbatch works") from error


def _code(folder: pathlib.Path, number: str) -> pathlib.Path:
  """Where a job leaves its exit code."""
  return folder / f"{number}.code"


def _name(workdir: pathlib.Path) -> str:
  """A job's name: the point, and which sweep's."""
  digest = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:8]
  return f"{workdir.name}-{digest}"


def _said(*command: str) -> subprocess.CompletedProcess[str]:
  """What a command of Slurm answers; a missing one fails as any other."""
  try:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
  except (OSError, subprocess.TimeoutExpired) as error:
    return subprocess.CompletedProcess(command, 1, "", str(error))
