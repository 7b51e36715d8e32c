"""A report as GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from larpo_jax.report.sections import Section
from larpo_jax.report.tables import Table

PLOTS = "plots"


def text(title: str, sections: Sequence[Section]) -> str:
  """The whole report; plots are linked to as files in plots/."""
  parts = [f"# {_plain(title)}"]
  for section in sections:
    if section.title:
      parts.append(f"## {_plain(section.title)}")
    parts += [_text(text) for text in section.texts]
    parts += ["\n".join(f"* {_text(item)}" for item in section.items)] if section.items else []
    for table in section.tables:
      parts += [f"### {_plain(table.title)}"] if len(section.tables) > 1 else []
      parts += [_table(table), *([table.note] if table.note else [])]
    for plot in section.plots:
      parts.append(f"![{_plain(plot.title)}]({PLOTS}/{plot.name}.png)\n\n{_plain(plot.caption)}")
  return "\n\n".join(parts) + "\n"


def _text(text: str) -> str:
  """A sentence, in which what stands in backticks is literal already."""
  parts = text.split("`")
  return "`".join(_escaped(part) if i % 2 == 0 else part for i, part in enumerate(parts))


def _table(table: Table) -> str:
  """As a table of GitHub's Markdown."""
  lines = [_line(table.columns), "|---" * len(table.columns) + "|"]
  lines += [_line([cell.text for cell in row]) for row in table.rows]
  return "\n".join(lines)


def _line(texts: Iterable[str]) -> str:
  return f"| {' | '.join(_plain(text).replace('|', chr(92) + '|') for text in texts)} |"


def _plain(text: str) -> str:
  return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
  """Without what Markdown takes for HTML or a link."""
  return text.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")
