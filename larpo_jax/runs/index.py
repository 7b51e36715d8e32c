"""A table of all runs below a directory, in a file that may be deleted at any time.

The directories are the truth: every question first brings the table up to date with them.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import pathlib
import sqlite3
from typing import TypeVar

from larpo_jax.runs import read

INDEX = ".runs.sqlite"
WAIT = 20.0  # seconds for another caller who is writing; then an index in memory does
_FORMAT = 1  # of the tables; a file of another one is made anew
_TABLES = """
  CREATE TABLE runs (path TEXT PRIMARY KEY NOT NULL, stamp TEXT NOT NULL) WITHOUT ROWID;
  CREATE TABLE cells (
    path TEXT NOT NULL, column TEXT NOT NULL, value NOT NULL, PRIMARY KEY (path, column)
  ) WITHOUT ROWID;
"""
T = TypeVar("T")


def ask(directory: pathlib.Path, question: Callable[[sqlite3.Connection], T]) -> T:
  """The answer of an index that is up to date, whatever state its file is in.

  question gets a connection to tables runs(path, stamp) and cells(path, column, value), within a
  transaction. A broken file is made anew; where none can be written, the index is in memory.
  """
  file = directory / INDEX
  with contextlib.suppress(sqlite3.OperationalError):  # cannot be written, or is held for long
    try:
      return _asked(str(file), directory, question)
    except sqlite3.OperationalError:
      raise
    except (sqlite3.DatabaseError, UnicodeDecodeError):  # it is broken
      for path in (file, directory / f"{INDEX}-journal"):
        path.unlink(missing_ok=True)
      return _asked(str(file), directory, question)
  return _asked(":memory:", directory, question)


def _asked(file: str, directory: pathlib.Path, question: Callable[[sqlite3.Connection], T]) -> T:
  with contextlib.closing(sqlite3.connect(file, timeout=WAIT, isolation_level=None)) as connection:
    connection.execute("PRAGMA synchronous = OFF")  # what a crash of the machine breaks is remade
    connection.execute("BEGIN IMMEDIATE")  # one caller at a time; a second one has little to read
    if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
      raise sqlite3.DatabaseError("broken")
    _update(connection, directory)
    try:
      return question(connection)
    finally:
      connection.execute("COMMIT")


def _update(connection: sqlite3.Connection, directory: pathlib.Path) -> None:
  """Reads the runs that are new or have changed, and forgets those that are gone."""
  if connection.execute("PRAGMA user_version").fetchone() != (_FORMAT,):
    for statement in ("DROP TABLE IF EXISTS runs; DROP TABLE IF EXISTS cells;" + _TABLES).split(
      ";"
    ):
      connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {_FORMAT}")
  known = dict(connection.execute("SELECT path, stamp FROM runs"))
  for run in read.find(directory):
    path = read.text(run.relative_to(directory).as_posix())
    stamp, held = read.stamp(run), read.running(run)
    if held or known.get(path) != stamp:
      row = read.read(run, held) | {"name": path}
      # A run that runs is read again the next time: when it is killed, no file changes.
      _replace(connection, path, "running" if held else stamp, row)
    known.pop(path, None)
  for path in known:
    connection.execute("DELETE FROM runs WHERE path = ?", (path,))
    connection.execute("DELETE FROM cells WHERE path = ?", (path,))


def _replace(
  connection: sqlite3.Connection, path: str, stamp: str, row: dict[str, read.Value]
) -> None:
  connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (path, stamp))
  connection.execute("DELETE FROM cells WHERE path = ?", (path,))
  cells = [(path, column, value) for column, value in row.items()]
  connection.executemany("INSERT INTO cells VALUES (?, ?, ?)", cells)
