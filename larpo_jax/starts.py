"""The supervised stage once for all runs that begin with it: arms of a sweep start alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import fcntl
import hashlib
import json
import pathlib
import time
from typing import Any

import jax

from larpo_jax import session as session_lib
from larpo_jax import workdir
from larpo_jax.data import dataset
from larpo_jax.models import huggingface

WAIT = 0.5  # seconds between looks at what another run is making
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
  with _turn(session, directory):
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


@contextlib.contextmanager
def _turn(session: session_lib.Session, directory: pathlib.Path) -> Iterator[None]:
  """Until no other run is at it; the lock is the kernel's, so a killed run leaves none behind."""
  if jax.process_count() > 1:
    yield
    return
  directory.parent.mkdir(parents=True, exist_ok=True)
  with open(f"{directory}.lock", "w", encoding="utf-8") as file:
    waited = False
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        if not waited:
          print("supervised: another run is at the same stage; waiting for it", flush=True)
        waited = True
        session.poll()
        with session.away():
          time.sleep(WAIT)
    yield
