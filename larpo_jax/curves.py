"""The curves of a run as PNG: one figure a stage, a panel for each quantity that it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import math
import os
from pathlib import Path
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from larpo_jax import writers

# Okabe and Ito's colours, told apart by colour-blind readers too; the light yellow is left out.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# A panel: its axis and unit, and the metrics in it, as patterns of whole names.
PANELS = (
  ("loss (nats)", (r"loss", r"eval_loss")),
  ("gold reward, accuracy", (r"(eval_)?gold/(reward|accuracy)",)),
  ("gold reward, accuracy of samples", (r"(eval_)?sampled/gold/(reward|accuracy)",)),
  ("proxy reward", (r"(eval_)?(sampled/)?proxy/reward",)),
  ("implicit reward margin (nats x beta)", (r"(eval_)?rewards/margins",)),
  ("implicit rewards (nats x beta)", (r"(eval_)?rewards/(chosen|rejected)",)),
  ("ranking accuracy (share of pairs)", (r"(eval_)?(rank/accuracy|rewards/accuracies)",)),
  ("rank metrics of the test split", (r"(eval_)?(score/)?(ndcg|mrr|kendall_tau|accuracy)",)),
  ("KL to the start (nats)", (r"eval_kl",)),
  # Of the responses that are trained on: a KL only where the policy itself wrote them.
  ("log-ratio to the reference (nats)", (r"kl",)),
  ("entropy (nats a token)", (r"(eval_)?entropy",)),
  ("length (tokens)", (r"(eval_)?length", r"length/.*")),
  ("gradient norm", (r"grad_norm",)),
  ("reward of the candidates", (r"candidates/(reward|best)",)),
  ("share of candidates or lists", (r"candidates/(all_tied|unique|finished)", r"lists/.*")),
  ("throughput (tokens/s)", (r"throughput/tokens_per_second",)),
)
COLUMNS = 3
WIDTH, HEIGHT, TITLE = 4.6, 3.2, 0.35  # inches: of a panel with its margins, and above all
MARGINS = (0.85, 0.15, 0.5, 0.45)  # inches of a panel left, right, below and above
STYLES = ("-", "--", "-.", ":")
Points = dict[str, tuple[list[float], list[float]]]  # of each stage: steps and values


def plot(run: str | os.PathLike | Sequence[Mapping[str, Any]], directory: Any = "") -> list[Path]:
  """Writes curves/STAGE.png and returns the paths; run is a workdir, or rows as `writers.read`'s.

  directory is where to; needed with rows, else workdir/curves. Stages whose names differ in a
  number at the end (round_0, round_1) follow each other in one figure. A stage without any of the
  known metrics has none. Raises ValueError where rows come without a directory.
  """
  if isinstance(run, str | os.PathLike):
    rows: Sequence[Mapping[str, Any]] = writers.read(run)
    directory = directory or Path(run) / "curves"
  else:
    rows = run
  if not directory:
    raise ValueError("plot(rows) needs a directory to write to")
  paths = []
  for name, stages in _groups(rows).items():
    figure = _figure(name, stages)
    if figure is not None:
      Path(directory).mkdir(parents=True, exist_ok=True)
      paths.append(Path(directory) / f"{name}.png")
      FigureCanvasAgg(figure).print_png(str(paths[-1]))
  return paths


def _groups(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
  """{"round": {"round_0": rows, "round_1": rows}, "rounds": {"rounds": rows}}."""
  groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
  for row in rows:
    name = re.sub(r"[_/-]?\d+$", "", row["stage"]) or row["stage"]
    groups.setdefault(name, {}).setdefault(row["stage"], []).append(row)
  return groups


def _figure(name: str, stages: Mapping[str, list[Mapping[str, Any]]]) -> Figure | None:
  series, starts = _series(stages)
  panels = []
  for label, patterns in PANELS:
    metrics = [key for key in series if any(re.fullmatch(p, key) for p in patterns)]
    if metrics:
      panels.append((label, metrics))
  if not panels:
    return None
  columns = min(COLUMNS, len(panels))
  lines = math.ceil(len(panels) / columns)
  figure = Figure(figsize=(WIDTH * columns, HEIGHT * lines + TITLE), dpi=110)
  figure.suptitle(name.replace("_", " "), fontsize=13)
  every = figure.subplots(lines, columns, squeeze=False, gridspec_kw=_grid(lines, columns)).ravel()
  for axes, (label, metrics) in zip(every, panels):
    for index, key in enumerate(metrics):
      _lines(axes, series[key], PALETTE[index % len(PALETTE)], STYLES[index % len(STYLES)], key)
    _dress(axes, label, metrics, "round" if name == "rounds" else "step", starts)
  for axes in every[len(panels) :]:
    axes.set_axis_off()
  return figure


def _grid(lines: int, columns: int) -> dict[str, float]:
  """Where the panels lie; matplotlib's own search for that takes half of all drawing."""
  wide, high = WIDTH * columns, HEIGHT * lines + TITLE
  left, right, below, above = MARGINS
  return dict(
    left=left / wide,
    right=1 - right / wide,
    bottom=below / high,
    top=1 - (above + TITLE) / high,
    wspace=(left + right) / (WIDTH - left - right),
    hspace=(below + above) / (HEIGHT - below - above),
  )


def _series(stages: Mapping[str, list[Mapping[str, Any]]]) -> tuple[dict[str, Points], list[float]]:
  """Each metric's points over all stages one after the other, and where the stages start."""
  series: dict[str, Points] = {}
  starts, offset = [], 0.0
  for rows in stages.values():
    starts.append(offset)
    for row in sorted(rows, key=lambda row: row["step"]):
      for key, value in row.items():
        if key not in ("stage", "step") and math.isfinite(value):
          steps, values = series.setdefault(key, {}).setdefault(row["stage"], ([], []))
          steps.append(offset + row["step"])
          values.append(value)
    offset += max(row["step"] for row in rows)
  return series, starts


def _lines(axes: Axes, points: Points, colour: str, style: str, label: str) -> None:
  """A line for each stage. Few points are marked; many are drawn pale under their running mean."""
  few = sum(len(steps) for steps, _ in points.values()) <= 40
  for index, (steps, values) in enumerate(points.values()):
    look: dict[str, Any] = dict(color=colour, linestyle=style, label=label if index == 0 else None)
    if few:
      axes.plot(steps, values, marker="o", markersize=3, linewidth=1.4, **look)
      continue
    window = np.ones(min(max(5, len(steps) // 25), len(steps)) | 1)
    half = len(window) // 2
    sums, counts = np.convolve(values, window), np.convolve(np.ones(len(values)), window)
    mean = (sums / counts)[half : half + len(steps)]
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(steps, mean, linewidth=1.6, **look)


def _dress(
  axes: Axes, label: str, metrics: Sequence[str], unit: str, starts: Sequence[float]
) -> None:
  for start in starts[1:]:
    axes.axvline(start, color="#999999", linewidth=0.8, linestyle=":")
  axes.set_xlabel(unit)
  axes.set_ylabel(label)
  low, high = axes.get_xlim()
  axes.set_xlim(min(low, (low + high - 1) / 2), max(high, (low + high + 1) / 2))
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  axes.grid(alpha=0.25)
  axes.spines[["top", "right"]].set_visible(False)
  if len(metrics) > 1:
    axes.legend(
      fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0
    )
