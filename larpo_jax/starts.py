"""The supervised stage once for all runs that begin with it: arms of a sweep start alike."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import hashlib
import json
import pathlib
import time
from typing import Any

import jax

from larpo_jax import session as session_lib
from larpo_jax import workdir
from larpo_jax.data import dataset, once
from larpo_jax.models import huggingface

# What comes after the supervised stage, or changes nothing of what it computes.
LATER = (
  *("loss", "rounds", "reward", "reference", "steps", "epochs", "evaluate", "checkpoint"),
  *("log_every", "export", "data.batch_size", "data.train", "data.test"),
  *("optimizer.learning_rate", "supervised.shared"),
)


def shared(session: session_lib.Session, make: Callable[[], Any]) -> Any:
  """What make() gives, from the cache where a run of the same settings and code has left it.

  It lies there as a Hugging Face checkpoint whose weights are those of make() to the last bit. A
  second run that comes while the first one makes it waits for that; of several processes, each
  run makes its own if nothing is there as it begins.
  """
  directory = _directory(session)
  directory.parent.mkdir(parents=True, exist_ok=True)
  # The clock is news: however long the other one takes, it is alive while it holds the lock.
  turn = once.alone(f"{directory}.lock", time.monotonic, session.wait)
  with contextlib.nullcontext() if jax.process_count() > 1 else turn:
    if (directory / "config.json").exists():  # which a checkpoint gets last
      if jax.process_index() == 0:
        print(f"supervised: done by another run, read from {directory}", flush=True)
      return _read(session, directory)
    made = make()
    huggingface.save(directory, made, session.architecture, tokenizer=session.tokenizer)
  return made


def _directory(session: session_lib.Session) -> pathlib.Path:
  settings = workdir.flat(workdir.plain(session.config.to_dict()))
  before = {
    k: v for k, v in settings.items() if not f"{k}.".startswith(tuple(f"{x}." for x in LATER))
  }
  key = [before, workdir.versions(), workdir.hardware(), _code()]
  name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
  return dataset.cache_directory(session.config.reference.cache_dir) / "starts" / name


def _code() -> str:
  """A hash of the package: other code, another start."""
  files = sorted(pathlib.Path(__file__).parent.rglob("*.py"))
  return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _read(session: session_lib.Session, directory: pathlib.Path) -> Any:
  config = session.config
  place = dict(mesh=session.mesh, rules=config.rules, **session_lib.model_options(config))
  return huggingface.load(directory, **place)[1]
