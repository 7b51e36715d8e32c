"""Many questions to a judge: several at a time, none twice, whatever was interrupted.

Verdicts lie in a file, {"digest", "verdict"} a line, which is appended to as they come. A digest is
of all that is asked: model, filled template and settings of the reply. So neither texts nor keys
lie there, and a run that goes on, or another one, finds what is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent import futures
import hashlib
import json
import pathlib
import threading
import time
from typing import Any

import tqdm

from larpo_jax.data import dataset, once
from larpo_jax.rewards import _chat


def ask(
  endpoint: _chat.Endpoint, questions: Sequence[str], accepted: Sequence[str], cache: str
) -> list[str]:
  """The verdict on each question.

  cache is a directory; "" is one beside prepared data. One run at a time asks a model what the
  cache lacks, so that endpoint.parallel holds for all. Raises RuntimeError where there is no
  verdict after all tries; it says how many there are, which are not asked for again.
  """
  bodies = [endpoint.body(question) for question in questions]
  digests = [_digest(body) for body in bodies]
  asked = dict(zip(digests, bodies))
  directory = pathlib.Path(cache) if cache else dataset.cache_directory() / "judge"
  path = directory / f"{_digest(endpoint.model)[:16]}.jsonl"
  taken = (*accepted, *([_chat.GARBAGE] if endpoint.garbage == "tie" else []))
  known = _known(path, taken)
  if asked.keys() - known.keys():
    directory.mkdir(parents=True, exist_ok=True)
    news = lambda: path.exists() and path.stat().st_size  # noqa: E731
    with once.alone(path.with_suffix(".lock"), news, time.sleep):
      known = _known(path, taken)  # with what another run has asked meanwhile
      lacking = {digest: body for digest, body in asked.items() if digest not in known}
      known |= _answers(endpoint, lacking, accepted, path, len(asked)) if lacking else {}
  return [known[digest] for digest in digests]


def _answers(
  endpoint: _chat.Endpoint,
  bodies: Mapping[str, dict[str, Any]],
  accepted: Sequence[str],
  path: pathlib.Path,
  total: int,
) -> dict[str, str]:
  """Verdicts by digest, each written down as it comes. At the first failure no more are begun."""
  key, stop = endpoint.key(), threading.Event()
  found: dict[str, str] = {}
  failed: RuntimeError | None = None
  bar = tqdm.tqdm(desc=f"judge {endpoint.model}", total=len(bodies), unit="verdict", disable=None)
  with bar, _appended(path) as file, futures.ThreadPoolExecutor(endpoint.parallel) as pool:
    work = {
      pool.submit(_chat.verdict, endpoint, key, body, accepted, stop): digest
      for digest, body in bodies.items()
    }
    try:
      for done in futures.as_completed(work):
        try:
          found[work[done]] = verdict = done.result()
        except futures.CancelledError:
          continue
        except RuntimeError as error:
          failed = failed or error
          _end(stop, work)
          continue
        file.write(json.dumps({"digest": work[done], "verdict": verdict}) + "\n")
        file.flush()
        bar.update()
    finally:  # an interrupt, too, waits for no more than what is on its way
      _end(stop, work)
  if failed is not None:
    have = total - len(bodies) + len(found)
    raise RuntimeError(
      f"the judge {endpoint.model} at {endpoint.url} gave {failed}; {have} of {total} verdicts are "
      f"in {path} and are not asked for again: see to it and repeat the command"
    )
  return found


def _end(stop: threading.Event, work: Mapping[futures.Future, str]) -> None:
  """No other try, and nothing that has not begun."""
  stop.set()
  for each in work:
    each.cancel()


def _known(path: pathlib.Path, taken: Sequence[str]) -> dict[str, str]:
  """Verdicts by digest; a line that a kill tore is no verdict, nor is one that is not taken."""
  found = {}
  for line in path.read_bytes().splitlines() if path.exists() else []:
    try:
      row = json.loads(line)
      if row["verdict"] in taken:
        found[row["digest"]] = row["verdict"]
    except (ValueError, LookupError, TypeError):
      pass
  return found


def _appended(path: pathlib.Path) -> Any:
  """The file opened for more lines, after the end of a line that a kill tore."""
  torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
  file = path.open("a", encoding="utf-8")
  if torn:
    file.write("\n")
  return file


def _digest(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
