"""What the length limits took away, as a table: for a run and for inspect."""

from __future__ import annotations

from rich.table import Table

from larpo_jax.data.problems import Report


def table(report: Report) -> Table:
  """What was cut, in rows and in tokens."""
  title = f"truncation of {report.source}"
  found = Table("", "all", "cut", "share", title=title, title_justify="left")
  notes, rejected = report.notes, report.rejected
  for name in ("prompts", "prompt_tokens", "responses", "response_tokens"):
    _row(found, name.replace("_", " "), notes[name], notes[f"{name}_cut"])
  for name in ("overlong", "equal_after_truncation"):
    _row(found, f"lists dropped: {name}", report.rows, rejected[name])
  thinned = notes["candidates_thinned"]
  _row(found, "candidates thinned", notes["responses"] + thinned, thinned)
  return found


def _row(table: Table, name: str, whole: int, cut: int) -> None:
  table.add_row(name, f"{whole}", f"{cut}", f"{cut / max(whole, 1):.1%}")
