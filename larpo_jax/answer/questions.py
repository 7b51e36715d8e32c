"""What every benchmark's prompts file is read into, and how such files are read."""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any, NamedTuple


class Question(NamedTuple):
  """One prompt: what the model is told, and the entry of the file that it came from."""

  text: str
  row: dict[str, Any]


def text(row: Mapping[str, Any], name: str, where: str) -> str:
  """A column that has to be a text; ValueError that says where it is not."""
  if name not in row:
    raise ValueError(f"{where} has no {name!r}; it has {', '.join(map(repr, row)) or 'nothing'}")
  if not isinstance(row[name], str) or not row[name].strip():
    raise ValueError(f"{where}: {name!r} has to be a text, and is {str(row[name])[:40]!r}")
  return row[name]


def json_of(path: str | os.PathLike) -> Any:
  """A JSON file's value; ValueError where it is none."""
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is no JSON ({error}); is it of another format?") from None


def json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The objects of a JSON-lines file; ValueError that names the line."""
  rows = []
  for number, line in enumerate(pathlib.Path(path).read_text(encoding="utf-8").split("\n"), 1):
    if line.strip():
      try:
        row = json.loads(line)
      except ValueError as error:
        raise ValueError(f"{path}, line {number} is no JSON ({error})") from None
      if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number} is no JSON object")
      rows.append(row)
  return rows


def lines(rows: list[dict[str, Any]]) -> str:
  """JSON lines."""
  return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
