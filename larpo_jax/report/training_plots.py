"""Plots of what runs wrote while they trained: each arm's mean over seeds with its band."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import pathlib
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from larpo_jax.report import drawing, series
from larpo_jax.report.drawing import Plot
from larpo_jax.report.findings import Findings
from larpo_jax.report.sentences import words
from larpo_jax.report.series import Points, Series

CAPTION = "Mean over seeds; band: its 95 % t interval."


class Panel(NamedTuple):
  """One plot: the series in it, one under the other, and what their axis is called."""

  name: str
  title: str
  axis: str
  series: tuple[str, ...]
  caption: str = ""
  changes: bool = False  # since the first step
  minus: str = ""  # an arm that is taken off, seed by seed


PANELS = (
  Panel("kl", "KL to the start", "KL (nats)", ("eval_kl",)),
  Panel(
    *("displacement", "Displacement", "change (nats)", ("logps/chosen", "logps/rejected")),
    "Change of the responses' log-probs since the first step: below 0 they became less likely.",
    changes=True,
  ),
  Panel(
    *("rewards", "Implicit rewards", "reward (nats x beta)"),
    ("rewards/chosen", "rewards/rejected"),
  ),
  Panel(
    *("margins", "Margin", "margin (nats x beta)", ("rewards/margins",)),
    "Implicit reward of the chosen minus that of the rejected response.",
  ),
  Panel("length", "Length of answers", "length (tokens)", ("eval_length",)),
  Panel(
    *("training_length", "Length of training responses", "length (tokens)"),
    ("length/chosen", "length/rejected"),
  ),
)


def plots(found: Findings, arms: Sequence[str], directory: pathlib.Path) -> Iterator[Plot]:
  """Draws what the runs have of the metric's curve and of PANELS; the lines are those of `arms`."""
  metric = words(found.metric)
  name = (f"eval_{found.metric}",)
  learning = Panel("learning", f"Learning curve: {metric}", metric, name)
  gap = "Seed by seed, so that what a seed has in common for all arms is gone."
  label = f"{metric} minus the baseline's"
  minus = Panel(
    "gap", "Learning curve minus the baseline's", label, name, gap, minus=found.baseline
  )
  for panel in (learning, minus, *PANELS) if len(found.arms) > 1 else (learning, *PANELS):
    there = [name for name in panel.series if any(_of(each, name) for each in found.series)]
    if there:
      yield _plot(found, arms, panel, there, directory)


def _plot(
  found: Findings, arms: Sequence[str], panel: Panel, there: list[str], directory: pathlib.Path
) -> Plot:
  height = 1.5 + 2.1 * len(there) + 0.16 * len(arms)
  with drawing.styled(panel.name):
    figure, every = drawing.figure(len(there), height)
    for axes, name in zip(every, there):
      _bands(axes, found, arms, name, panel)
      axes.set_ylabel(panel.axis)
      axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
      if len(there) > 1:
        axes.set_title(words(name), fontsize=10, loc="left")
    evaluated = there[0].startswith("eval_")
    every[-1].set_xlabel(found.series[0].unit if evaluated else "training step")
    drawing.legend(figure, every[0])
    caption = f"{panel.caption} {CAPTION}".strip()
    return drawing.save(figure, directory / f"{panel.name}.png", panel.title, caption)


def _bands(axes: Axes, found: Findings, arms: Sequence[str], name: str, panel: Panel) -> None:
  by_arm: dict[str, dict[int, Points]] = {}
  for run, each in zip(found.runs, found.series):
    if points := _of(each, name):
      by_arm.setdefault(run.arm, {})[run.seed] = series.change(points) if panel.changes else points
  names = drawing.labels(found.arms)
  for index, arm in enumerate(arms):
    known = by_arm.get(arm, {})
    if panel.minus:
      there = by_arm.get(panel.minus, {})
      known = {s: series.minus(known[s], there[s]) for s in sorted(known.keys() & there.keys())}
    if known:
      band, look = series.band(list(known.values())), drawing.look(index)
      every = max(1, len(band.steps) // 8)
      axes.plot(band.steps, band.mean, label=names[arm], markersize=4,
                markevery=(index % every, every), **look)  # fmt: skip
      axes.fill_between(
        band.steps, band.low, band.high, color=look["color"], alpha=0.6 / (3 + len(arms)), lw=0
      )


def _of(each: Series, name: str) -> Points | None:
  return (each.evaluated if name.startswith("eval_") else each.training).get(name)
