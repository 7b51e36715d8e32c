"""Flags -> one training run.

    python -m larpo_jax.main --config experiments/quickstart.py --workdir runs/quickstart

Intentionally short: what a run does is in train.py. Exit codes: 0 finished, 1 an error that the
last line names, 75 stopped by a signal with everything saved (requeue the same command), 76 the
workdir is another live run's.
"""

from __future__ import annotations

import os
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from larpo_jax import compiler, config

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="FILE.py[:ARGUMENT]", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where all goes; the same one again resumes.")
_WANDB = flags.DEFINE_string("wandb", None, "A Weights & Biases project; default: $LARPO_WANDB.")


def main(argv: list[str]) -> int:
  """Runs the config; a user's mistake ends in one sentence, its traceback in workdir/error.txt."""
  if len(argv) > 1:
    raise app.UsageError(f"stray words: {' '.join(argv[1:])}; an override is --config.KEY=VALUE")
  compiler.set_flags(os.environ)
  # jax, once the flags are right
  from larpo_jax import loop, preemption, processes, tracking, train
  from larpo_jax import workdir as workdirs
  from larpo_jax.data import dataset

  if _WANDB.value is not None:
    os.environ[tracking.WANDB] = _WANDB.value
  logging.set_verbosity(logging.WARNING)  # orbax tells every step of every save
  workdir = os.path.abspath(str(_WORKDIR.value))
  try:
    checked = config.validate(_CONFIG.value)
    processes.start(os.environ)
    processes.keep_compiled(dataset.cache_directory() / "compiled")
    train.run(checked, workdir)
  except loop.Preempted as stop:
    print(f"larpo_jax: {stop}", file=sys.stderr)
    return preemption.REQUEUE
  except workdirs.InUse as error:
    print(f"larpo_jax: error: {error}", file=sys.stderr)
    return processes.leave(preemption.IN_USE)
  except (ValueError, OSError, RuntimeError) as error:
    kept = _keep_traceback(workdir)
    print(f"larpo_jax: error: {config.redact(str(error))}{kept}", file=sys.stderr)
    return processes.leave(1)
  return 0


def _keep_traceback(workdir: str) -> str:
  """Where the traceback lies, for who wants to know more; "" where nothing can be written."""
  try:
    os.makedirs(workdir, exist_ok=True)
    with open(os.path.join(workdir, "error.txt"), "w", encoding="utf-8") as file:
      file.write(config.redact(traceback.format_exc()))
  except OSError:
    return ""
  return f"\n(details in {file.name})"


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=config.parse_flags)
