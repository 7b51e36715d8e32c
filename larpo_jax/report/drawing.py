"""How plots look, and how a figure becomes a PNG file and an SVG in the page's own colours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import html
import io
import pathlib
import re
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#16181d"  # text and axes: dark in the PNG, the page's own colour in the SVG
# Okabe and Ito's colours without the light yellow; markers and dashes tell them apart in grey too.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MOST = len(MARKERS)  # lines that can be told apart in one plot
SIZE = (5.4, 3.6)  # inches
STYLE: dict[Any, Any] = {
  "axes.edgecolor": INK,
  "axes.facecolor": "none",
  "axes.grid": True,
  "axes.labelcolor": INK,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "figure.facecolor": "none",
  "font.size": 10.0,
  "grid.alpha": 0.25,
  "grid.color": "#808080",
  "legend.frameon": False,
  "svg.fonttype": "none",
  "text.color": INK,
  "text.parse_math": False,  # a dollar in a name is a dollar
  "xtick.color": INK,
  "ytick.color": INK,
}


class Plot(NamedTuple):
  """A drawn figure."""

  name: str  # plots/NAME.png
  title: str
  caption: str
  svg: str  # an element for an HTML page; all text in it is escaped


@contextlib.contextmanager
def styled(name: str) -> Iterator[None]:
  """Figures made and saved inside have the house's look; `name` makes their ids the same again."""
  with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
    yield


def figure(rows: int = 1, height: float = SIZE[1]) -> tuple[Figure, list[Axes]]:
  """An empty figure with so many axes above each other, whose x axis is one."""
  made = Figure(figsize=(SIZE[0], height), layout="constrained")
  return made, list(made.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def look(index: int) -> dict[str, Any]:
  """Colour, marker and dashes of the line number `index` of a plot."""
  return dict(
    color=PALETTE[index % len(PALETTE)],
    marker=MARKERS[index % MOST],
    linestyle=DASHES[index % MOST],
  )


def legend(made: Figure, axes: Axes) -> None:
  """Names of the lines under the plot, as many in a row as fit."""
  handles, labels = axes.get_legend_handles_labels()
  if labels:
    columns = max(1, min(len(labels), int(66 / (max(map(len, labels)) + 8))))
    made.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8.5)


def save(made: Figure, path: pathlib.Path, title: str, caption: str) -> Plot:
  """Writes a PNG on white, and gives the same as SVG on nothing."""
  buffer = io.StringIO()
  FigureCanvasSVG(made).print_svg(buffer, metadata={"Date": None})
  made.set_facecolor("white")
  path.parent.mkdir(parents=True, exist_ok=True)
  made.set_dpi(150)
  FigureCanvasAgg(made).print_png(str(path))
  return Plot(path.stem, title, caption, inline(buffer.getvalue(), path.stem, title))


def inline(svg: str, name: str, title: str) -> str:
  """An SVG file as an element of a page: ids of its own, the page's font and text colour."""
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)

  def tag(match: re.Match[str]) -> str:
    text = re.sub(r'(?<=\s)id="', f'id="{name}-', match[0])
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    return re.sub(INK, "currentColor", text, flags=re.IGNORECASE)

  svg = re.sub(r"<[^>]+>", tag, svg)
  return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def readable_on(colour: Sequence[float]) -> str:
  """Black or white, whichever is read more easily on a colour (RGB from 0 to 1)."""
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
  luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
  return "#000000" if luminance > 0.179 else "#ffffff"


def short(text: str, most: int = 44) -> str:
  """A name that fits a legend."""
  return text if len(text) <= most else f"{text[: most - 3]}..."


def labels(arms: Iterable[str], most: int = 44) -> dict[str, str]:
  """arm -> a name that fits; where it is too long, without what is not needed to tell it apart.

  An arm is `key=value, key=value`; of what it can do without, the last goes first.
  """
  rows = {arm: arm.split(", ") for arm in arms}
  return {
    arm: short(", ".join(_needed(row, rows.values(), most)), most) for arm, row in rows.items()
  }


def _needed(row: list[str], rows: Iterable[list[str]], most: int) -> list[str]:
  """The parts of a row that fit, or that no other row has all of."""
  others = [set(other) for other in rows if other is not row]
  for part in reversed(row):
    if len(", ".join(row)) <= most:
      break
    fewer = [each for each in row if each != part]
    if fewer and not any(other.issuperset(fewer) for other in others):
      row = fewer
  return row


def chosen(ranked: Sequence[str], first: Iterable[str], order: Iterable[str]) -> list[str]:
  """The lines that are drawn: `first`, then the best ones, at most eight, in the sweep's order."""
  kept = set(list(dict.fromkeys([*first, *ranked]))[:MOST])
  return [name for name in order if name in kept]
