"""Pass@N and its kin before and after training: a picture and a table of a run's pools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import re
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import table as tables

PANELS = {  # name: axis and unit
  "pass": "Pass@N (share of prompts)",
  "majority": "majority of N is right (share of prompts)",
  "best": "gold reward of the best of N",
  "proxy_best": "gold reward of the best of N by the reward",
  "unique": "different responses among N (share)",
  "all_tied": "lists of N with one reward (share)",
}
MARKERS = "osD^vPX*"  # of temperatures, for eyes and printers that see no colours
_NAME = re.compile(r"(\w+)@(\d+)/T=(.+)")
Curves = dict[str, dict[str, dict[int, float]]]  # {"pass": {"0.7": {N: value}}}


def read(numbers: Mapping[str, float]) -> Curves:
  """The curves among the numbers of an evaluation, NAME@N/T=TEMPERATURE."""
  found: Curves = {}
  for name, value in numbers.items():
    match = _NAME.fullmatch(name)
    if match:
      found.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = float(value)
  return found


def plot(summary: Mapping[str, Mapping[str, float]], directory: str | Path) -> list[Path]:
  """Writes directory/pass_at_n.png, a line a temperature, dashed before; [] without pools."""
  before, after = read(summary["before"]), read(summary["after"])
  panels = [name for name in PANELS if name in after]
  if not panels:
    return []
  lines = -(-len(panels) // 2)
  figure = Figure(figsize=(10.0, 3.6 * lines + 0.8), layout="constrained", dpi=110)
  every = figure.subplots(lines, 2, squeeze=False).ravel()
  for axes, name in zip(every, panels):
    for side, style in ((before, "--"), (after, "-")):
      _draw(axes, side.get(name, {}), style, "before" if style == "--" else "after")
    axes.set_xscale("log")
    places = sorted({n for points in after[name].values() for n in points})
    axes.set_xticks(places, [str(n) for n in places])
    axes.minorticks_off()
    axes.set_xlabel("N samples a prompt")
    axes.set_ylabel(PANELS[name])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
  for axes in every[len(panels) :]:
    axes.set_axis_off()
  shown = sorted(zip(*every[0].get_legend_handles_labels()), key=lambda pair: pair[1])
  columns = min(len(after[panels[0]]), 5)  # each of a temperature
  figure.legend(*zip(*shown), loc="outside upper center", frameon=False, fontsize=8, ncols=columns)
  path = Path(directory) / "pass_at_n.png"
  path.parent.mkdir(parents=True, exist_ok=True)
  FigureCanvasAgg(figure).print_png(str(path))
  return [path]


def _draw(axes: Any, curves: Mapping[str, Mapping[int, float]], style: str, side: str) -> None:
  """A line a temperature, from dark at the lowest to light at the highest."""
  for place, temperature in enumerate(sorted(curves, key=float)):
    colour = colormaps["cividis"](0.9 * place / max(len(curves) - 1, 1))
    marker = MARKERS[place % len(MARKERS)]
    points = sorted(curves[temperature].items())
    look: dict[str, Any] = dict(color=colour, linestyle=style, marker=marker, markersize=4)
    axes.plot(*zip(*points), linewidth=1.4, label=f"T={temperature}, {side}", **look)


def table(summary: Mapping[str, Mapping[str, float]]) -> tables.Table | None:
  """Pass@N before and after, a row a temperature; None where a run has none."""
  before, after = (read(summary[side]).get("pass", {}) for side in ("before", "after"))
  if not before or not after:
    return None
  places = sorted({n for points in after.values() for n in points})
  shown = tables.Table("Pass@N", *(f"N={n}" for n in places))
  for temperature, points in after.items():
    first = before.get(temperature, {})
    cells = [
      f"{first[n]:.3f} > {points[n]:.3f}" if n in first else f"{points[n]:.3f}" for n in places
    ]
    shown.add_row(f"T={temperature}", *cells)
  return shown
