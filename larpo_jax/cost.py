"""What a run has cost: time, steps, tokens, memory."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import json
import pathlib
import resource
import sys
import time

import jax
import numpy as np

from larpo_jax import workdir as files
from larpo_jax import writers

SECONDS = "seconds.json"


@contextlib.contextmanager
def timed(workdir: pathlib.Path, share: float = 1) -> Iterator[None]:
  """Adds a share of the time until the block ends to results/seconds.json.

  That of a killed run is lost.
  """
  began = time.monotonic()
  try:
    yield
  finally:
    if jax.process_index() == 0:
      add(workdir, share * (time.monotonic() - began))


def add(workdir: pathlib.Path, seconds: float) -> None:
  """Adds seconds to what is known."""
  path = workdir / "results" / SECONDS
  path.parent.mkdir(exist_ok=True)
  files.write_json(path, {"seconds": known(workdir) + seconds})


def known(workdir: pathlib.Path) -> float:
  """Seconds of the processes of a run that have ended, but for those that were killed."""
  path = workdir / "results" / SECONDS
  return float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0


def of(workdir: pathlib.Path) -> dict[str, float]:
  """Seconds, steps of all stages, tokens trained on and generated, and the peak of memory.

  trained_tokens is the mean of the logged steps times their number, of response tokens that count;
  generated_tokens are those of the rounds, without evaluations. peak_memory_bytes is a device's on
  an accelerator, of this process on a CPU. Runs that share a process share its seconds, and have
  its memory.
  """
  rows = writers.read(workdir)
  steps, trained = 0, 0.0
  for stage in dict.fromkeys(row["stage"] for row in rows):
    logged = [row for row in rows if row["stage"] == stage and "num_tokens" in row]
    if logged:
      last = max(row["step"] for row in logged)
      steps += last
      trained += last * float(np.mean([row["num_tokens"] for row in logged]))
  generated = sum(row.get("candidates/tokens", 0.0) for row in rows)
  return {
    "seconds": known(workdir),
    "steps": steps,
    "trained_tokens": trained,
    "generated_tokens": generated,
    "peak_memory_bytes": _peak(),
  }


def _peak() -> float:
  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return float(stats["peak_bytes_in_use"])
  unit = 1 if sys.platform == "darwin" else 1024
  return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
