"""The supervised stage and what is said of its end, once for all runs that begin with it.

So the arms of a sweep start alike.
"""

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
from larpo_jax.evaluators.generation import Evaluation
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
  with contextlib.nullcontext() if jax.process_count() > 1 else _turn(session, directory):
    if (directory / "config.json").exists():  # which a checkpoint gets last
      if jax.process_index() == 0:
        print(f"supervised: done by another run, read from {directory}", flush=True)
      return _read(session, directory)
    made = make()
    huggingface.save(directory, made, session.architecture, tokenizer=session.tokenizer)
  return made


def evaluated(session: session_lib.Session, evaluate: Callable[[], Evaluation]) -> Evaluation:
  """What evaluate() says of a shared start, from the cache where a run like this has left it.

  A run of several processes asks anew, and one whose reward is a model: what lies at its path may
  be another one now.
  """
  config = session.config
  if jax.process_count() > 1 or "path" in (config.reward or {}):
    return evaluate()
  limit = None if config.rounds is None else config.rounds.max_tokens
  asked = [config.evaluate, config.reward, config.data.test, config.data.batch_size, limit]
  path = _directory(session) / f"evaluation-{_digest([workdir.plain(each) for each in asked])}.json"
  with _turn(session, path):
    if path.exists():
      print(f"before: found by another run, read from {path}", flush=True)
      return Evaluation(**json.loads(path.read_text()))
    numbers, lines = evaluate()
    found = Evaluation({k: float(v) for k, v in numbers.items()}, [*map(workdir.plain, lines)])
    workdir.write_json(path, found._asdict())
  return found


def _turn(session: session_lib.Session, path: pathlib.Path) -> contextlib.AbstractContextManager:
  """Keeps other runs from making what lies at that path meanwhile."""
  # The clock is news: however long the other one takes, it is alive while it holds the lock.
  return once.alone(f"{path}.lock", time.monotonic, session.wait)


def _directory(session: session_lib.Session) -> pathlib.Path:
  settings = workdir.flat(workdir.plain(session.config.to_dict()))
  before = {
    k: v for k, v in settings.items() if not f"{k}.".startswith(tuple(f"{x}." for x in LATER))
  }
  # Not the commit: one that leaves the package as it is changes nothing that is computed.
  versions = {k: v for k, v in workdir.versions().items() if k != "commit"}
  key = [before, versions, workdir.hardware(), _code()]
  return dataset.cache_directory(session.config.reference.cache_dir) / "starts" / _digest(key)


def _digest(what: Any) -> str:
  return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def _code() -> str:
  """A hash of the package: other code, another start."""
  files = sorted(pathlib.Path(__file__).parent.rglob("*.py"))
  return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _read(session: session_lib.Session, directory: pathlib.Path) -> Any:
  config = session.config
  place = dict(mesh=session.mesh, rules=config.rules, **session_lib.model_options(config))
  return huggingface.load(directory, **place)[1]
