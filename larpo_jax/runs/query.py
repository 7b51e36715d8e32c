"""Which runs, in which order, with which columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import difflib
import fnmatch
import math
import re
import sqlite3
from typing import NamedTuple

from larpo_jax.runs.read import SIDES, Value

STANDING = (
  *("name", "state", "stage", "step", "started", "finished", "seconds", "code", "hardware"),
  "problem",
)
TIMES = ("started", "finished")
# Of the results, what is shown where nothing is asked for.
MAIN = ("gold/reward", "gold/accuracy", "sampled/gold/reward", "accuracy", "ndcg", "kl")
ORDER = ("<=", ">=", "<", ">")
_CONDITION = re.compile(r"\s*([^=<>!~]+?)\s*(<=|>=|!=|==|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_SELECT = """
  SELECT runs.path FROM runs LEFT JOIN cells AS sorted ON sorted.path = runs.path
  AND sorted.column = ? {where} ORDER BY sorted.value IS NULL, typeof(sorted.value) = 'text',
  sorted.value {direction}, runs.path LIMIT ?
"""
Row = dict[str, Value]


class Condition(NamedTuple):
  """A column, an operator (=, !=, <, <=, >, >=, or ~ for "contains"), and a value as typed."""

  column: str
  operator: str
  value: str


def parse(text: str) -> Condition:
  """Reads "loss.beta>=0.1"; ValueError where there is no operator."""
  found = _CONDITION.fullmatch(text)
  if found is None:
    raise ValueError(
      f"--where {text!r} must be a column, an operator (=, !=, <, <=, >, >=, ~) and a value, such "
      "as loss.beta>=0.1"
    )
  column, operator, value = found.groups()
  plain = value.lower() if value.lower() in ("true", "false", "none") else value
  return Condition(column, "=" if operator == "==" else operator, plain)


def select(
  connection: sqlite3.Connection,
  conditions: Sequence[Condition] = (),
  sort: str = "name",
  limit: int = -1,
) -> list[Row]:
  """The runs that meet all conditions; sort is a column, after a minus the largest first.

  Runs that lack the sorted column come last. Raises ValueError on a column that no run has.
  """
  key = sort.removeprefix("-")
  require([key, *(each.column for each in conditions)], columns(connection))
  parts, values = [], list[Value]()
  for each in conditions:
    part, given = _sql(each)
    parts.append(part)
    values += given
  where = f"WHERE {' AND '.join(parts)}" if parts else ""
  query = _SELECT.format(where=where, direction="DESC" if sort.startswith("-") else "ASC")
  paths = [path for (path,) in connection.execute(query, (key, *values, limit))]
  cells = "SELECT column, value FROM cells WHERE path = ?"
  return [dict(connection.execute(cells, (path,))) for path in paths]


def _sql(condition: Condition) -> tuple[str, list[Value]]:
  """A clause and its parameters: what a user types is never part of the SQL.

  Numbers are compared with numbers and texts with texts, so "nan" is neither above nor below.
  """
  column, operator, typed = condition
  number = None if column in TIMES else _number(typed)
  value: Value = typed if number is None else number
  values = [value]
  if operator == "~":
    clause, values = "instr(lower(value), lower(?)) > 0", [typed]
  elif operator not in ORDER:
    clause, values = "value IN (?, ?)", [value, typed]
  elif number is None:
    clause = f"typeof(value) = 'text' AND value {operator} ?"
  else:
    clause = f"typeof(value) <> 'text' AND value {operator} ?"
  within = "NOT IN" if operator == "!=" else "IN"
  clause = f"runs.path {within} (SELECT path FROM cells WHERE column = ? AND {clause})"
  return clause, [column, *values]


def _number(text: str) -> int | float | None:
  try:
    whole = int(text)
    return whole if abs(whole) < 2**63 else None
  except ValueError:
    pass
  try:
    number = float(text)
  except ValueError:
    return None
  return number if math.isfinite(number) else None


def columns(connection: sqlite3.Connection) -> list[str]:
  """Every column that some run has."""
  found = {name for (name,) in connection.execute("SELECT DISTINCT column FROM cells")}
  return [*STANDING, *sorted(found - {*STANDING})]


def present(rows: Sequence[Row]) -> list[str]:
  """Every column that one of the rows has."""
  found = {name for row in rows for name in row}
  return [*(name for name in STANDING if name in found), *sorted(found - {*STANDING})]


def require(names: Iterable[str], known: Sequence[str]) -> None:
  """Raises ValueError that lists the near ones of the first name that is no column."""
  for name in names:
    if name not in known:
      near = [each for each in known if name and name in each][:5]
      near += [e for e in difflib.get_close_matches(name, known, 5, 0.5) if e not in near]
      hint = f" (near it: {', '.join(near)})" if near else ""
      raise ValueError(f"no run has a column {name!r}{hint}; --columns '*' shows them all")


def shown(rows: Sequence[Row], asked: Sequence[str], known: Sequence[str]) -> list[str]:
  """The columns to show: those asked for, which may have * in them, or what tells runs apart.

  The latter are how each run stands, the settings that differ, and the main metrics.
  """
  if asked:
    matches = [[each] if each in known else fnmatch.filter(known, each) for each in asked]
    require([each for each, found in zip(asked, matches) if not found], known)
    return list(dict.fromkeys(name for found in matches for name in found))
  there = {name for row in rows for name in row}
  unfinished = any(row.get("state") != "done" for row in rows)
  metrics = [f"after/{name}" for name in MAIN if f"after/{name}" in there]
  return [
    *("name", "state"),
    *(name for name in ("stage", "step") if unfinished and name in there),
    *differing(rows),
    *metrics,
    *(name for name in ("seconds", "problem") if name in there),
  ]


def differing(rows: Sequence[Row]) -> list[str]:
  """The columns of the config that have two values among the runs that have them."""
  sides = tuple(f"{side}/" for side in SIDES)
  names = [n for n in present(rows) if n not in STANDING and not n.startswith(sides)]
  return [name for name in names if len({row[name] for row in rows if name in row}) > 1]
