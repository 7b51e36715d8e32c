"""Losses side by side: loss, slope and weights against the margin of one pair."""

from __future__ import annotations

from collections.abc import Sequence
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from larpo_jax.curves import PALETTE
from larpo_jax.explain import measured
from larpo_jax.explain.measured import Curve
from larpo_jax.explain.subject import Subject

WIDEST = 60.0  # nats of margin, either way
POINTS = 241
LARGEST = 6  # losses in a figure
ALIKE = 5.0  # panels of a row share an axis if none of them is this much higher than another
ROWS = ("loss", "d loss / d margin", "weight of a response\n(-d loss / d log p)")
MARGIN = "margin of the pair (nats)"
PATH = (
  "margin: log-ratio of the chosen less that of the rejected (log-probs where there is no "
  f"reference), sums over {measured.LENGTH} tokens; half of it is the chosen's rise, half the "
  "rejected's fall"
)


def draw(losses: Sequence[Subject], path: str) -> None:
  """Writes a PNG with a column of three panels for each of 1 to 6 losses.

  Raises ValueError where there are more, or path is no PNG's.
  """
  if not 1 <= len(losses) <= LARGEST:
    raise ValueError(f"a figure shows 1 to {LARGEST} losses side by side, not {len(losses)}")
  if not path.endswith(".png"):
    raise ValueError(f"--plot writes a PNG: {path!r} has to end in .png")
  FigureCanvasAgg(figure(losses)).print_png(path)


def figure(losses: Sequence[Subject]) -> Figure:
  """The figure that `draw` writes."""
  margins = np.linspace(-WIDEST, WIDEST, POINTS)
  columns = len(losses)
  size = (max(2.7 * columns + 1.2, 5.2), 7.6)
  drawn = Figure(figsize=size, layout="constrained", dpi=100)
  panels = drawn.subplots(len(ROWS), columns, sharex=True, squeeze=False)
  for column, loss in zip(panels.T, losses):
    verdicts = measured.facts(loss.kernel).verdicts
    _column(column, measured.curve(loss.kernel, margins, verdicts=verdicts))
    column[0].set_title(_title(loss), fontsize=9)
    column[-1].set_xlabel(MARGIN, fontsize=9)
  for row, label in zip(panels, ROWS):
    row[0].set_ylabel(label, fontsize=9)
    _share(row)
  panels[-1][0].legend(fontsize=8, frameon=False, loc="best")
  caption = textwrap.fill(PATH, int(15 * size[0]))
  drawn.supxlabel(caption, fontsize=8, color="#555555")
  return drawn


def _column(panels: Sequence[Axes], curve: Curve) -> None:
  blue, vermilion, green = PALETTE[:3]
  top, middle, bottom = panels
  top.plot(curve.margin, curve.loss, color="#000000", linewidth=1.8)
  middle.plot(curve.margin, curve.slope, color=green, linewidth=1.8)
  bottom.plot(curve.margin, -curve.chosen, color=blue, linewidth=1.8, label="chosen")
  look: dict[str, Any] = dict(color=vermilion, linewidth=1.8, linestyle="--", label="rejected")
  bottom.plot(curve.margin, -curve.rejected, **look)
  for axes in panels:
    axes.axvline(0.0, color="#999999", linewidth=0.8, linestyle=":")
    axes.axhline(0.0, color="#999999", linewidth=0.8)
    axes.set_xlim(-WIDEST, WIDEST)
    axes.set_xticks([-WIDEST, -WIDEST / 2, 0.0, WIDEST / 2, WIDEST])
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
    axes.yaxis.get_offset_text().set_fontsize(8)


def _share(row: Sequence[Axes]) -> None:
  """One y axis for the panels of a row, where their curves are of a size."""
  limits = np.asarray([axes.get_ylim() for axes in row])
  heights = np.ptp(limits, axis=1)
  if heights.max() > ALIKE * heights.min():
    return
  for axes in row:
    axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    axes.tick_params(labelleft=axes is row[0])


def _title(loss: Subject) -> str:
  """The name, and under it the hyper-parameters."""
  values: list[str] = []
  part: Subject | None = loss
  while part is not None:
    values += [f"{key}={value}" for key, value in part.values.items()]
    part = part.inner
  name = loss.title.replace("(", "(\n") if len(loss.title) > 30 else loss.title
  return f"{name}\n{textwrap.fill(', '.join(values), 38)}"
