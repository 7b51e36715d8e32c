r"""Lists, filters and sorts all runs below a directory.

    python -m larpo_jax.runs runs
    python -m larpo_jax.runs runs --where loss.name=listwise.listmle \
      --where 'optimizer.learning_rate<1e-3' --sort -after/gold/reward --limit 10

A column is a key of the config (loss.beta), a result (before/gold/reward, after/kl, cost/seconds)
or one of name, state, stage, step, started, finished, seconds, code, hardware, problem. A state is
done, running (a live process holds the run's lock), failed (its log or error.txt says why),
stopped, or broken (a file is torn). --where compares with =, !=, <, <=, >, >= and ~ (contains).
DIR/.runs.sqlite is an index that only makes this fast: delete it whenever you like.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import csv
import pathlib
import signal
import sqlite3
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from larpo_jax.runs import index, query
from larpo_jax.runs.query import Row

WIDEST = 40  # characters of a column, where there is a choice
STYLES = {"done": "green", "running": "cyan", "stopped": "yellow"}


def listed(
  directory: pathlib.Path,
  *,
  where: Sequence[str] = (),
  sort: str = "name",
  columns: Sequence[str] = (),
  limit: int = -1,
) -> tuple[list[Row], list[str]]:
  """Runs below a directory, and the columns to show; ValueError says what is wrong with a word."""
  if not directory.is_dir():
    raise ValueError(f"{directory} is no directory; give one that has runs below it")
  conditions = [query.parse(text) for text in where]

  def question(connection: sqlite3.Connection) -> tuple[list[Row], list[str]]:
    rows = query.select(connection, conditions, sort, limit)
    return rows, query.shown(rows, columns, query.columns(connection))

  return index.ask(directory, question)


def table(rows: Sequence[Row], columns: Sequence[str]) -> Table:
  """For a terminal: a long name is broken after its dots and slashes."""
  drawn = Table()
  for name in columns:
    drawn.add_column(Text(_header(name)), overflow="fold")
  for row in rows:
    style = STYLES.get(str(row.get("state")), "red")
    cells = {name: _cell(row, name) for name in columns}
    drawn.add_row(*(Text(cells[name], style if name == "state" else "") for name in columns))
  return drawn


def fitting(rows: Sequence[Row], columns: Sequence[str], width: int) -> list[str]:
  """The columns without the last settings that would make a table wider than width."""
  sizes = {}
  for name in columns:
    words = [*_header(name).split("\n"), *(_cell(row, name) for row in rows)]
    sizes[name] = 3 + min(WIDEST, max(map(len, words)))
  for name in reversed(query.differing(rows)):
    if sum(sizes.values()) < width:
      break
    sizes.pop(name, None)
  return list(sizes)


def _header(name: str) -> str:
  return printable(name).replace(".", ".\n").replace("/", "/\n")


def _cell(row: Row, name: str) -> str:
  value = row.get(name, "")
  if isinstance(value, float):
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
  return printable(str(value))


def printable(text: str) -> str:
  """Without what would move a terminal's cursor or end a line."""
  return "".join(letter if letter.isprintable() else " " for letter in text)


def write_csv(rows: Sequence[Row], columns: Sequence[str], path: pathlib.Path) -> None:
  """A line a run, numbers with all their digits."""
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([row.get(name, "") for name in columns] for row in rows)


def _print(rows: Sequence[Row], columns: Sequence[str], asked: bool) -> None:
  console = Console()
  if not console.is_terminal:
    lines = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
    print("\n".join("\t".join(map(printable, line)) for line in lines))
    return
  kept = columns if asked else fitting(rows, columns, console.width)
  console.print(table(rows, kept))
  surplus = len(columns) - len(kept)
  more = f"; {surplus} more settings differ: --columns '*' or --csv" if surplus else ""
  console.print(f"{len(rows)} runs{more}", highlight=False)


def _options(words: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m larpo_jax.runs",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("directory", type=pathlib.Path, metavar="DIR")
  parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE")
  parser.add_argument("--sort", default="name", metavar="COLUMN", help="-COLUMN: largest first")
  parser.add_argument("--columns", default="", metavar="A,B", help="'*' is all, 'after/*' some")
  parser.add_argument("--csv", type=pathlib.Path, metavar="FILE", help="every column, or --columns")
  parser.add_argument("--limit", type=int, default=-1, metavar="N")
  words = list(words)
  while "--sort" in words[:-1]:  # argparse takes -COLUMN for an option
    place = words.index("--sort")
    words[place : place + 2] = [f"--sort={words[place + 1]}"]
  return parser.parse_args(words)


def main(argv: Sequence[str] | None = None) -> int:
  """Prints; a user's mistake ends in one sentence."""
  options = _options(sys.argv[1:] if argv is None else argv)
  asked = [name.strip() for name in options.columns.split(",") if name.strip()]
  try:
    rows, columns = listed(
      options.directory,
      where=options.where,
      sort=options.sort,
      columns=asked,
      limit=options.limit,
    )
    if options.csv:
      write_csv(rows, columns if asked else query.present(rows), options.csv)
  except (ValueError, OSError) as error:
    print(f"larpo_jax: error: {error}", file=sys.stderr)
    return 1
  if rows:
    _print(rows, columns, bool(asked))
  else:
    print(f"no such run below {options.directory}", file=sys.stderr)
  return 0


if __name__ == "__main__":
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as with | head
  sys.exit(main())
