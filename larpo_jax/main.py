"""Flags -> one training run.

    python -m larpo_jax.main --config experiments/quickstart.py --workdir runs/quickstart

Intentionally short: what a run does is in train.py. Exit codes: 0 finished, 1 an error that the
last line names, 75 stopped by a signal with everything saved (requeue the same command).
"""

from __future__ import annotations

import os
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="FILE.py[:ARGUMENT]", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where all goes; the same one again resumes.")


def main(argv: list[str]) -> int:
  """Runs the config; a user's mistake ends in one sentence, its traceback in workdir/error.txt."""
  if len(argv) > 1:
    raise app.UsageError(f"stray words: {' '.join(argv[1:])}; an override is --config.KEY=VALUE")
  from larpo_jax import config, loop, preemption, processes, train  # jax, after the flags are right

  logging.set_verbosity(logging.WARNING)  # orbax tells every step of every save
  workdir = os.path.abspath(_WORKDIR.value)
  try:
    checked = config.validate(_CONFIG.value)
    processes.start(os.environ)
    train.run(checked, workdir)
  except loop.Preempted as stop:
    print(f"larpo_jax: {stop}", file=sys.stderr)
    return preemption.REQUEUE
  except (ValueError, OSError, RuntimeError) as error:
    os.makedirs(workdir, exist_ok=True)
    with open(os.path.join(workdir, "error.txt"), "w") as file:
      traceback.print_exc(file=file)
    print(f"larpo_jax: error: {error}\n(traceback: {file.name})", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
