"""A directory's digest manifest: which files were written, how long they are and their sha256.

`integrity.json` is a digest of itself, a line end, and JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "integrity.json"
LEVELS = ("full", "quick", "off")  # every byte; small files and every size; every size
_VERSION = 1
_SMALL = 64 * 1024  # bytes: "quick" reads the files up to this size


def write(path: Path, about: Mapping[str, Any]) -> None:
  """Digests every file below path and writes the manifest, atomically; about is kept with it."""
  names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
  with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    digests = list(pool.map(lambda name: _digest(path / name), names))
  files = {name: [(path / name).stat().st_size, digest] for name, digest in zip(names, digests)}
  body = {"version": _VERSION, "about": about, "files": files}
  text = json.dumps(body, indent=1, sort_keys=True)
  temporary = path / f"{NAME}.tmp"
  with open(temporary, "w") as file:
    file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path / NAME)


def read(path: Path) -> dict[str, Any]:
  """The manifest, {"version", "about", "files"}; ValueError that says what is wrong with it."""
  try:
    digest, _, text = (path / NAME).read_text().partition("\n")
  except FileNotFoundError:
    raise ValueError(f"{NAME} is missing") from None
  except UnicodeDecodeError:
    raise ValueError(f"{NAME} is not what was written") from None
  if hashlib.sha256(text.encode()).hexdigest() != digest:
    raise ValueError(f"{NAME} is not what was written")
  body = json.loads(text)
  if body["version"] > _VERSION:
    raise ValueError(f"{NAME} has version {body['version']}, newer than this larpo_jax")
  return body


def problem(path: Path, level: str) -> str | None:
  """Which file is bad and how; None where all are as they were written."""
  try:
    body = read(path)
  except ValueError as error:
    return str(error)
  for name, (size, digest) in body["files"].items():
    file = path / name
    if not file.is_file():
      return f"{name} is missing"
    if file.stat().st_size != size:
      return f"{name} has {file.stat().st_size} bytes and not {size}"
    look = level == "full" or (level == "quick" and size <= _SMALL)
    if look and _digest(file) != digest:
      return f"{name} is not what was written"
  return None


def _digest(file: Path) -> str:
  with open(file, "rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()
