"""The directory of a run: one live run at a time, files whole or absent, what it ran on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import errno
import fcntl
import importlib.metadata
import json
import math
import os
from pathlib import Path
import platform
import shutil
import socket
import subprocess
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from larpo_jax.config.redaction import differences, flat, redact

LOCK = ".lock"
CONFIG = "config.json"
_PACKAGES = ("flax", "optax", "orbax-checkpoint", "numpy", "transformers", "datasets", "grain")
# What another run in the same workdir may change: how long and where, not what is computed.
FREE = (
  *("steps", "epochs", "log_every", "checkpoint", "evaluate", "export", "mesh", "rules"),
  *("accumulation", "model.attention", "model.remat", "model.scan", "reference"),
)


class InUse(OSError):
  """Another live run has the workdir."""


@contextlib.contextmanager
def claim(workdir: str | os.PathLike) -> Iterator[Path]:
  """Holds the workdir for this process until the block ends; makes it where it is missing.

  The lock is the kernel's (flock), so that a killed run leaves none behind; with several processes
  process 0 holds it for all. Raises InUse, an OSError, that names pid, host and start of the run
  that has it, and OSError where it cannot be written.
  """
  path = Path(os.path.abspath(workdir))
  descriptor, problem = -1, None
  if jax.process_index() == 0:
    try:
      descriptor = _lock(path)
    except OSError as error:
      problem = error
  try:
    if jax.process_count() > 1:
      failed = multihost_utils.broadcast_one_to_all(np.int32(problem is not None))
      problem = problem or (OSError(f"process 0 could not claim {path}") if failed else None)
    if problem is not None:
      raise problem
    yield path
  finally:
    if descriptor >= 0:
      os.close(descriptor)  # unlocks; the file stays, as removing it could race with a claim


def _lock(path: Path) -> int:
  """Takes the lock and says in it who has it; the file descriptor that holds it."""
  try:
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
  except OSError as error:
    raise OSError(
      f"cannot write into the workdir {path}: {error.strerror}; give another --workdir"
    ) from error
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    who = _holder(descriptor)
    os.close(descriptor)
    raise InUse(f"the workdir {path} is in use by {who}; stop it, or give another") from None
  holder = {"pid": os.getpid(), "host": socket.gethostname(), "start": time.strftime("%F %T")}
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, json.dumps(holder).encode(), 0)
  return descriptor


def _holder(descriptor: int) -> str:
  try:
    holder = json.loads(os.pread(descriptor, 4096, 0))
    return f"pid {holder['pid']} on {holder['host']}, started {holder['start']}"
  except (ValueError, KeyError, TypeError):
    return "another process"


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes JSON whole or not at all: a temporary file, fsync, rename. NaN becomes "nan"."""
  write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes text whole or not at all; OSError that names path, need and free space."""
  path = Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise unwritten(error, path, len(text)) from error


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The rows of a JSON-lines file; a last line that a kill tore off is dropped.

  No file is no rows. Raises ValueError with the line number where an inner line is broken.
  """
  try:
    lines = Path(path).read_bytes().split(b"\n")
  except FileNotFoundError:
    return []
  rows = []
  for number, line in enumerate(lines[:-1], 1):  # what follows the last line end is torn, or empty
    try:
      if line.strip():
        rows.append(json.loads(line))
    except ValueError as error:
      raise ValueError(f"{path}, line {number} is no JSON ({error}); remove the line") from error
  return rows


def plain(value: Any) -> Any:
  """Valid JSON of a value: a number that is not finite is its name, other objects their text."""
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple | set):
    return [plain(item) for item in value]
  if value is None or isinstance(value, bool | int | str):
    return value
  try:
    number = float(value)
  except (TypeError, ValueError):
    return str(value)
  return number if math.isfinite(number) else str(number)


def record_run(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
  """Writes config.json (secrets struck out), versions.json and hardware.json, before any work.

  Raises ValueError with the difference where the workdir holds a run of another config: only what
  FREE names may change when a run is resumed. The stored config is read as JSON, never executed.
  """
  workdir = Path(workdir)
  here = redact(config)
  stored = workdir / CONFIG
  if stored.exists():
    try:
      there = json.loads(stored.read_text())
    except ValueError as error:
      raise ValueError(f"{stored} is no JSON; move it away to go on") from error
    changed = _bound(flat(there)), _bound(flat(plain(here)))
    if changed[0] != changed[1]:
      found = differences(*changed)
      raise ValueError(
        f"{workdir} holds a run of another config ({found}); give another --workdir, or delete it"
      )
  if jax.process_index() == 0:
    write_json(stored, here)
    write_json(workdir / "versions.json", versions())
    write_json(workdir / "hardware.json", hardware())


def _bound(fields: Mapping[str, Any]) -> dict[str, Any]:
  free = tuple(f"{name}." for name in FREE)
  return {key: value for key, value in fields.items() if not f"{key}.".startswith(free)}


def versions() -> dict[str, str]:
  """Python, jax, the packages that numbers depend on, and the commit where there is one."""
  found = {"python": platform.python_version(), "jax": jax.__version__}
  for package in ("larpo_jax", "jaxlib", *_PACKAGES):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  commit = _git("rev-parse", "HEAD")
  if commit:
    found["commit"] = commit + ("+changes" if _git("status", "--porcelain", "-uno") else "")
  return found


def hardware() -> dict[str, Any]:
  """The devices and what the host has."""
  return {
    "platform": platform.platform(),
    "cores": os.cpu_count(),
    "backend": jax.default_backend(),
    "devices": [str(device.device_kind) for device in jax.devices()],
    "processes": jax.process_count(),
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
  }


def _git(*arguments: str) -> str:
  command = ["git", "-C", str(Path(__file__).parent), *arguments]
  with contextlib.suppress(OSError, subprocess.SubprocessError):
    return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
  return ""


_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_WORDS = ("no space", "resource_exhausted", "quota", "file too large", "errno 28", "errno 27")


class Unwritten(OSError):
  """A file that could not be written; the message names the path, the need and what is free."""


def unwritten(error: BaseException, path: Path, size: int) -> Unwritten:
  """Says in one sentence why path, of about size bytes, could not be written."""
  if isinstance(error, Unwritten):
    return error
  lines = str(error).strip().splitlines() or [type(error).__name__]
  try:
    free = f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB"
  except OSError:
    free = "an unknown amount"
  text = str(error).lower()
  full = getattr(error, "errno", None) in _FULL_DISK or any(word in text for word in _FULL_WORDS)
  why, remedy = ("the disk is full, ", "free space") if full else ("", "mend that")
  explained = Unwritten(
    f"{path} was not written: {why}it needs about {size / 1e6:.1f} MB and {free} is free "
    f"({lines[0][-160:]}); what was there is untouched: {remedy} and run the same command again"
  )
  explained.__cause__ = error
  return explained
