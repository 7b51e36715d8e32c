"""How texts become ids, written beside a model, for whoever is to read texts as it has learnt."""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

NAME = "reading.json"
SETTINGS = ("max_prompt", "max_response", "chat", "eos", "boundary")  # of config.data


def save(directory: str | os.PathLike, data: Mapping[str, Any]) -> None:
  """Writes those of config.data into a model's directory."""
  found = {name: data[name] for name in SETTINGS}
  (pathlib.Path(directory) / NAME).write_text(json.dumps(found, indent=2) + "\n")


def settings(directory: str | os.PathLike, given: Mapping[str, Any]) -> dict[str, Any]:
  """What is given and not None, else what the directory says; without both a name is left out.

  Raises ValueError on a file that says something else.
  """
  path = pathlib.Path(directory) / NAME
  known = json.loads(path.read_text()) if path.exists() else {}
  if not isinstance(known, dict) or not known.keys() <= set(SETTINGS):
    raise ValueError(f"{path} holds other settings than {', '.join(SETTINGS)}: remove it")
  return known | {name: value for name, value in given.items() if value is not None}
