"""Several processes, one program: start jax.distributed where an engine started more than one."""

from __future__ import annotations

from collections.abc import Mapping
import os
import sys

import jax

HEARTBEAT_SECONDS = 30  # a dead peer ends the others after this long; the default is 100


def start(environment: Mapping[str, str]) -> None:
  """Initialises jax.distributed if the environment says that this is one of several processes.

  Read: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID (any launcher), the
  variables of Slurm's srun, and of a TPU pod. Raises ValueError when the first three are not all
  there.
  """
  if environment.get("JAX_COORDINATOR_ADDRESS"):
    missing = [key for key in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if not environment.get(key)]
    if missing:
      raise ValueError(
        f"JAX_COORDINATOR_ADDRESS is set but {' and '.join(missing)} not: set all three"
      )
    jax.distributed.initialize(
      environment["JAX_COORDINATOR_ADDRESS"],
      num_processes=int(environment["JAX_NUM_PROCESSES"]),
      process_id=int(environment["JAX_PROCESS_ID"]),
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  elif _several(environment):
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def leave(code: int) -> int:
  """The exit code of a process that gives up, which one of several does at once.

  An orderly exit would wait minutes for the others, who wait for this one; they end when they see
  it gone.
  """
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


def _several(environment: Mapping[str, str]) -> bool:
  tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
  return (tasks.isdigit() and int(tasks) > 1) or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def keep_compiled(directory: str | os.PathLike) -> None:
  """Keeps compiled programs on disk, so that the next start is fast.

  $JAX_COMPILATION_CACHE_DIR names another place; set to nothing, it turns this off.
  """
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", os.fspath(directory))
