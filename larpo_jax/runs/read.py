"""Run directories, and what the files of one say, as one flat row. Nothing of them is executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
import fcntl
import json
import math
import os
import pathlib
import re
import socket
import time
from typing import Any

from larpo_jax.config.redaction import flat

LOCK = ".lock"  # as workdir.claim holds it
CONFIG, SUMMARY, METRICS = "config.json", "results/summary.json", "metrics.jsonl"
ERROR, LOG = "error.txt", "log.txt"
FILES = (LOCK, CONFIG, "versions.json", "hardware.json", METRICS, SUMMARY, ERROR, LOG)
SIDES = ("before", "after", "cost")  # of the summary
TAIL = 20_000  # bytes of a log or of metrics that are looked at
_FAILED = re.compile(r"larpo_jax: error: |[\w.]*(Error|Exception)(: |$)")
Value = str | int | float


def find(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """The run directories at and below a directory; what cannot be read is passed over."""
  seen, places = set[tuple[int, int]](), [directory]
  while places:
    place = places.pop()
    try:
      status = place.stat()
      with os.scandir(place) as scan:
        folders = {entry.name: entry.is_dir() for entry in scan}
    except OSError:
      continue
    if (status.st_dev, status.st_ino) in seen:  # a link that leads back
      continue
    seen.add((status.st_dev, status.st_ino))
    inside = [name for name, folder in folders.items() if folder and not name.startswith(".")]
    claimed = "versions.json" in folders or folders.keys() >= {LOCK, CONFIG}
    # A run that was refused before it claimed the directory has left no more than these.
    if claimed or (not inside and folders.keys() & {ERROR, LOG}):
      yield place
    else:
      places.extend(place / name for name in inside)


def stamp(run: pathlib.Path) -> str:
  """Changes whenever a file changes that `read` looks at."""
  found = []
  for name in FILES:
    try:
      status = os.stat(f"{run}/{name}")
      found.append(f"{status.st_mtime_ns}:{status.st_size}")
    except OSError:
      found.append("-")
  return " ".join(found)


def running(run: pathlib.Path) -> bool:
  """Whether a live process holds the run's lock.

  The lock is not even tried where its holder is known to be dead: a run that starts at that moment
  would be refused.
  """
  try:
    with open(run / LOCK, "rb") as file:
      holder = json.loads(file.read(4096))
      if holder["host"] == socket.gethostname() and not _alive(int(holder["pid"])):
        return False
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except (OSError, ValueError, LookupError, TypeError, RecursionError):
    pass
  return False


def _alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except PermissionError:  # another user's
    return True
  except (ProcessLookupError, OverflowError):
    return False
  return True


def read(run: pathlib.Path, held: bool) -> dict[str, Value]:
  """column -> value; texts are "none", "true" and "false" for what JSON calls null, true, false.

  Columns are the config's dotted keys, before/..., after/... and cost/... of the results, and how
  the run stands. Where a file is torn, state is "broken" and problem says which; nothing is raised.
  """
  try:
    return _row(run, held)
  except RecursionError:
    return {"state": "broken", "problem": "a file is nested too deeply"}


def _row(run: pathlib.Path, held: bool) -> dict[str, Value]:
  problems: list[str] = []
  config, versions, hardware, summary = (
    _json(run / name, problems) for name in (CONFIG, "versions.json", "hardware.json", SUMMARY)
  )
  row = flat(config)
  for side in SIDES:
    if isinstance(summary.get(side), dict):
      row |= {f"{side}/{name}": value for name, value in summary[side].items()}
  row |= _progress(run / METRICS, problems)
  done, failure = (run / SUMMARY).exists(), _failure(run)
  if problems:
    state = "broken"
  elif done or held:
    state = "done" if done else "running"
  else:
    state = "failed" if failure else "stopped"
  row |= _times(run, state, row.get("cost/seconds"))
  row |= {"state": state, "code": _code(versions), "hardware": _devices(hardware)}
  if problems or state == "failed":
    row["problem"] = "; ".join(problems) or failure
  return {text(name): _value(value) for name, value in row.items()}


def _json(path: pathlib.Path, problems: list[str]) -> dict[str, Any]:
  """A JSON object; {} where there is none."""
  try:
    found = json.loads(path.read_bytes())
    if isinstance(found, dict):
      return found
  except FileNotFoundError:
    return {}
  except OSError as error:
    problems.append(f"{path.name} cannot be read: {error.strerror}")
    return {}
  except ValueError:
    pass
  problems.append(f"{path.name} is no JSON object")
  return {}


def _progress(path: pathlib.Path, problems: list[str]) -> dict[str, Any]:
  """Stage and step of the last whole row; what follows it is torn by a kill, or being written."""
  lines = _tail(path).rpartition(b"\n")[0].splitlines()
  if not lines:
    return {}
  try:
    row = json.loads(lines[-1])
    return {"stage": str(row["stage"]), "step": int(row["step"])}
  except (ValueError, LookupError, TypeError):
    problems.append(f"{path.name} is no JSON in its last line")
    return {}


def _tail(path: pathlib.Path) -> bytes:
  """The end of a file, or nothing."""
  try:
    with path.open("rb") as file:
      file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
      return file.read()
  except OSError:
    return b""


def _failure(run: pathlib.Path) -> str:
  """The error that ended the last try; "" where none did."""
  began = _changed(run / LOCK)
  for name in (ERROR, LOG):
    lines = [
      line for line in _tail(run / name).decode(errors="replace").split("\n") if line.strip()
    ]
    said = [line for line in lines[-3:] if name == ERROR or _FAILED.match(line)]
    if said and _changed(run / name) >= began:
      return said[-1].removeprefix("larpo_jax: error: ")[:300]
  return ""


def _changed(path: pathlib.Path) -> float:
  try:
    return path.stat().st_mtime
  except OSError:
    return 0.0


def _times(run: pathlib.Path, state: str, seconds: Any) -> dict[str, Any]:
  """When the run first started and when it ended, and its seconds: its own count, or between."""
  # The names of TensorBoard's files say when they began; the lock is of the last start.
  events = (run / "tensorboard").glob("*/*.tfevents.*")
  names = [re.search(r"\.tfevents\.(\d{1,11})\.", path.name) for path in events]
  starts = [float(name[1]) for name in names if name]
  starts += [_changed(run / LOCK)] if (run / LOCK).exists() else []
  ended = time.time() if state == "running" else max(_changed(run / name) for name in FILES)
  if state == "done":
    ended = _changed(run / SUMMARY)
  found: dict[str, Any] = {}
  if starts:
    found["started"] = _clock(min(starts))
    found["seconds"] = round(max(0.0, ended - min(starts)), 1)
  if state in ("done", "failed"):
    found["finished"] = _clock(ended)
  return found if seconds is None else {**found, "seconds": seconds}


def _clock(seconds: float) -> str:
  return time.strftime("%F %T", time.localtime(seconds))


def _code(versions: Mapping[str, Any]) -> str:
  """The commit, or the version where there is none."""
  commit, _, changes = str(versions.get("commit", "")).partition("+")
  return f"{commit[:10]}+{changes}".strip("+") or str(versions.get("larpo_jax", ""))


def _devices(hardware: Mapping[str, Any]) -> str:
  devices = hardware.get("devices")
  counts = Counter(map(str, devices)) if isinstance(devices, list) else {}
  return ", ".join(f"{count} x {name}" for name, count in counts.items())


def _value(value: Any) -> Value:
  """What SQLite keeps exactly: whole and finite numbers, and texts."""
  if value is None or isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, int):
    return value if abs(value) < 2**63 else float(min(max(value, -(2**1000)), 2**1000))
  if isinstance(value, float):
    return value if math.isfinite(value) else str(value)
  return text(value if isinstance(value, str) else json.dumps(value))


def text(value: str) -> str:
  """Without the halves of characters that JSON and file names may hold."""
  return value.encode("utf-8", "backslashreplace").decode()
