"""A table as LaTeX."""

from __future__ import annotations

from collections.abc import Iterable

from larpo_jax.report.tables import Table

_LATEX = {
  "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
  "^": r"\textasciicircum{}", "_": r"\_", "~": r"\textasciitilde{}", "%": r"\%", "±": r"$\pm$",
  "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "`": "'",
}  # fmt: skip


def latex(table: Table) -> str:
  """As a tabular of booktabs, to be put in with input; of plain ASCII, else a question mark."""
  lines = [
    "% needs \\usepackage{booktabs}",
    f"\\begin{{tabular}}{{{'l' * len(table.columns)}}}",
    "\\toprule",
    _latex_line(table.columns),
    "\\midrule",
    *(_latex_line([cell.text for cell in row]) for row in table.rows),
    "\\bottomrule",
    "\\end{tabular}",
  ]
  return "\n".join(lines) + "\n"


def _latex_line(texts: Iterable[str]) -> str:
  # A bracket after a line's end would be its argument, hence the empty group.
  return "{}" + " & ".join(_latex_text(text) for text in texts) + r" \\"


def _latex_text(text: str) -> str:
  clean = " ".join(text.split())
  return "".join(_LATEX.get(c) or (c if c.isascii() and c.isprintable() else "?") for c in clean)
