"""A config as plain values, without its secrets, as one flat table, and as one digest."""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
import json
import re
from typing import Any

STRUCK = "***"
_SECRET_KEY = re.compile(r"(?i)token(?!i[sz])|secret|(?<![a-z])key|api_?key|password|credential")
_SECRETS = (
  re.compile(r"\b(hf|sk|ghp|gho|xox[a-z]|pypi|AKIA)[_-][A-Za-z0-9_\-]{6,}"),
  re.compile(r"(?<=://)[^/\s@]+(?=@)"),  # user:password of a URL
)


def plain(config: Any) -> Any:
  """Dicts, tuples and leaves, whatever ml_collections made of them; a copy."""
  if hasattr(config, "to_dict"):
    config = config.to_dict()
  if isinstance(config, Mapping):
    return {key: plain(value) for key, value in config.items()}
  if isinstance(config, list | tuple):
    return tuple(plain(value) for value in config)
  return config


def redact(value: Any) -> Any:
  """A copy with secrets struck out: texts under a key that says so, keys of services, URL users."""
  value = plain(value)
  if isinstance(value, dict):
    return {
      key: _strike(item) if _SECRET_KEY.search(str(key)) else redact(item)
      for key, item in value.items()
    }
  if isinstance(value, tuple):
    return tuple(redact(item) for item in value)
  if isinstance(value, str):
    for pattern in _SECRETS:
      value = pattern.sub(STRUCK, value)
  return value


def _strike(value: Any) -> Any:
  """Every text below; numbers stay, as max_tokens is no secret."""
  if isinstance(value, dict):
    return {key: _strike(item) for key, item in value.items()}
  if isinstance(value, tuple):
    return tuple(_strike(item) for item in value)
  return STRUCK if isinstance(value, str) and value else value


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
  """{"model.lora.rank": 0}; a sequence is a value."""
  found: dict[str, Any] = {}
  for key, value in plain(config).items():
    if isinstance(value, dict) and value:
      found.update(flat(value, f"{prefix}{key}."))
    else:
      found[f"{prefix}{key}"] = value
  return found


def digest(config: Any) -> str:
  """16 hexadecimal digits that are the same for the same settings, in whatever order."""
  text = json.dumps(plain(config), sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(there: Mapping[str, Any], here: Mapping[str, Any], most: int = 4) -> str:
  """What two tables do not agree on, in a line, the shallow keys first; "" where they do."""
  keys = sorted({**there, **here}, key=lambda key: key.count("/") + key.count("."))
  parts = {
    "only there": [f"{key} = {there[key]}" for key in keys if key not in here],
    "only here": [f"{key} = {here[key]}" for key in keys if key not in there],
    "different": [
      f"{key} = {there[key]} there, {here[key]} here"
      for key in keys
      if key in there and key in here and there[key] != here[key]
    ],
  }
  return "; ".join(
    f"{len(items)} {what}: {', '.join(items[:most])}{', ...' if len(items) > most else ''}"
    for what, items in parts.items()
    if items
  )
