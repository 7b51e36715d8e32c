r"""Runs points of a sweep side by side in one process; what a launcher starts for a group of them.

    python -m larpo_jax.sweep.together --workdir DIR NAME NAME ...

Each point has a thread, its own workdir and log.txt, as if it ran alone; the steps that several
are at are taken in one program (`larpo_jax.vectorised`), what they compile is compiled once. Exit
codes: 0 all done, 1 some failed, 75 stopped by a signal with everything saved, 76 another process
has the workdir of one.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import threading
import traceback
from typing import Any

from absl import logging

from larpo_jax import compiler
from larpo_jax import config as configs
from larpo_jax.runs import read


def main(argv: list[str] | None = None) -> int:
  """Runs what is not done yet of the points that are named."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="the sweep's directory")
  parser.add_argument("names", nargs="+", help="of points")
  options = parser.parse_args(argv)
  compiler.set_flags(os.environ)
  # jax, once the flags are right
  from larpo_jax import preemption, processes
  from larpo_jax.data import dataset

  logging.set_verbosity(logging.WARNING)
  processes.keep_compiled(dataset.cache_directory() / "compiled")
  directory = options.workdir.absolute()
  done = lambda name: (directory / name / read.SUMMARY).exists()  # noqa: E731
  names = [name for name in options.names if not done(name)]
  with preemption.Guard() as guard:
    return side_by_side(directory, names, guard)


def side_by_side(directory: pathlib.Path, names: list[str], guard: Any) -> int:
  """A thread and a lane for each point; the exit code of all."""
  from larpo_jax import preemption
  from larpo_jax.lanes import Lanes

  lanes, codes = Lanes(len(names)), dict.fromkeys(names, 1)
  output = _ByThread(sys.stdout)

  def run(number: int, name: str) -> None:
    (directory / name).mkdir(parents=True, exist_ok=True)
    with (directory / name / read.LOG).open("a", encoding="utf-8", buffering=1) as log:
      output.own.file = log
      try:
        codes[name] = _run(directory, name, guard, lanes, number)
      finally:
        lanes.leave()
        del output.own.file

  threads = [threading.Thread(target=run, args=each) for each in enumerate(names)]
  before = sys.stdout, sys.stderr
  sys.stdout = sys.stderr = output
  try:
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  finally:
    sys.stdout, sys.stderr = before
  return next((c for c in (1, preemption.REQUEUE, preemption.IN_USE) if c in codes.values()), 0)


def _run(directory: pathlib.Path, name: str, guard: Any, lanes: Any, number: int) -> int:
  """One point's exit code; what went wrong stands in its log."""
  from larpo_jax import loop, preemption, train
  from larpo_jax import workdir as workdirs
  from larpo_jax.sweep import resolved

  try:
    config = configs.validate(resolved.get_config(directory / "configs" / f"{name}.json"))
    train.run_guarded(config, str(directory / name), guard, lanes, number)
  except loop.Preempted as stop:
    print(f"larpo_jax: {stop}")
    return preemption.REQUEUE
  except workdirs.InUse as error:
    print(f"larpo_jax: {error}")
    return preemption.IN_USE
  except Exception as error:
    text = configs.redact(traceback.format_exc())
    (directory / name / read.ERROR).write_text(text, encoding="utf-8")
    print(f"larpo_jax: error: {configs.redact(str(error))}\n(details in error.txt)")
    return 1
  return 0


class _ByThread:
  """What is printed goes to the file of the thread that prints."""

  def __init__(self, other: Any):
    """other: where threads without a file print."""
    self.own = threading.local()
    self._other = other

  def write(self, text: str) -> int:
    """As a file's."""
    return getattr(self.own, "file", self._other).write(text)

  def flush(self) -> None:
    """As a file's."""
    getattr(self.own, "file", self._other).flush()

  def isatty(self) -> bool:
    """Never: a log is no terminal."""
    return False


if __name__ == "__main__":
  sys.exit(main())
