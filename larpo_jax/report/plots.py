"""The plots of one sweep: its arms, the reward-KL frontier, its axes against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import itertools
import pathlib
from typing import Any

from matplotlib.axes import Axes
import numpy as np

from larpo_jax.report import collect, drawing, statistics, training_plots
from larpo_jax.report.drawing import Plot
from larpo_jax.report.findings import Findings, mean
from larpo_jax.report.sentences import words

MOST_ROWS = 30  # arms in the plot of all arms
MOST_MAPS = 4
WIDE = 20.0  # largest / smallest value of an axis from which on it is logarithmic
Groups = dict[str, dict[Any, list[str]]]  # the other axes' values -> value of the axis -> arms


def plots(found: Findings, directory: pathlib.Path) -> list[Plot]:
  """Draws everything that the runs have the numbers for, as directory/NAME.png too."""
  ranked = sorted(found.arms, key=lambda arm: -mean(found.arms[arm]))
  lines = drawing.chosen(ranked, [found.baseline], found.arms)
  drawn = [_arms(found, ranked, directory)] if found.against else []
  if any(way for ways in found.paths.values() for way in ways.values()):
    drawn.append(_frontier(found, lines, directory))
  drawn += [*_axes(found, directory), *_heat(found, directory)]
  return [*drawn, *training_plots.plots(found, lines, directory)]


def of_all(count: int, arms: Sequence[str]) -> str:
  """A note where not all arms are drawn."""
  return "" if count >= len(arms) else f" The baseline and the best: {count} of {len(arms)} arms."


def _arms(found: Findings, ranked: Sequence[str], directory: pathlib.Path) -> Plot:
  shown = [arm for arm in ranked if arm == found.baseline or arm in found.against][:MOST_ROWS]
  there = found.arms[found.baseline]
  with drawing.styled("arms"):
    figure, (axes,) = drawing.figure(height=1.1 + 0.3 * len(shown))
    axes.axvline(0, color=drawing.INK, linewidth=0.8)
    for place, arm in enumerate(reversed(shown)):
      if arm == found.baseline:
        axes.plot(0, place, "s", color=drawing.PALETTE[1])
        continue
      each, here = found.against[arm], found.arms[arm]
      colour = drawing.PALETTE[0]
      gaps = [here[seed] - there[seed] for seed in here.keys() & there.keys()]
      axes.plot(gaps, [place] * len(gaps), "|", color=colour, alpha=0.6, markersize=9)
      axes.plot([each.contrast.low, each.contrast.high], [place] * 2, "-", color=colour, lw=2.5)
      if each.prompts:
        ends = [each.prompts.low, each.prompts.high]
        axes.plot(ends, [place - 0.22] * 2, "-", color=drawing.PALETTE[4], lw=1.5)
      axes.plot(each.contrast.difference, place, "o", color=colour)
    names = drawing.labels(found.arms, 42)
    axes.set_yticks(range(len(shown)), [names[arm] for arm in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    # From the right end: arms with long names leave no room for a label in the middle.
    axes.set_xlabel(f"{words(found.metric)} minus the baseline's", loc="right")
    axes.locator_params(axis="x", nbins=5)
    caption = (
      "Difference to the baseline (square), its 95 % t interval over seeds, each seed's difference "
      "(ticks), and where there are prompts the bootstrap interval (thin, below)."
    )
    if len(shown) < len(found.arms):
      caption += f" The best {len(shown)} of {len(found.arms)} arms."
    return drawing.save(figure, directory / "arms.png", "Differences", caption)


def _frontier(found: Findings, lines: Sequence[str], directory: pathlib.Path) -> Plot:
  with drawing.styled("frontier"):
    figure, (axes,) = drawing.figure(height=3.6 + 0.16 * len(lines))
    names = drawing.labels(found.arms)
    for index, arm in enumerate(lines):
      look = drawing.look(index)
      ways = [way for way in found.paths[arm].values() if way]
      for way in ways:
        axes.plot(*zip(*way), color=look["color"], linewidth=0.7, alpha=0.35)
      lengths = {len(way) for way in ways}
      if len(lengths) == 1:  # the same rounds at all seeds: their mean is a path too
        middle = np.mean(ways, axis=0)
        axes.plot(*middle.T, label=names[arm], markersize=6, linewidth=1.8, **look)
    axes.set_xlabel("KL to the start (nats)")
    axes.set_ylabel(words(found.metric))
    drawing.legend(figure, axes)
    caption = (
      "Each arm from the start (KL 0) through its rounds, mean over seeds; thin: each seed. Higher "
      "at the same KL is better." + of_all(len(lines), list(found.arms))
    )
    return drawing.save(figure, directory / "frontier.png", "Reward-KL frontier", caption)


def _axes(found: Findings, directory: pathlib.Path) -> Iterator[Plot]:
  """The metric along each numeric axis, else along the first of several; KL along numeric ones."""
  axes = collect.axes(found.runs)
  numeric = [label for label, values in axes.items() if collect.numeric(values)]
  for place, label in enumerate(numeric or (list(axes)[:1] if len(axes) > 1 else [])):
    groups = groups_of(found, label)
    yield _along(found, label, groups, f"axis_{place}", directory)
    if label in numeric and any(way for ways in found.paths.values() for way in ways.values()):
      yield _frontier_along(found, label, groups, f"frontier_axis_{place}", directory)


def groups_of(found: Findings, label: str) -> Groups:
  """Arms by what they are apart from one axis; the best eight groups."""
  axes = collect.axes(found.runs)
  groups: Groups = {}
  for run in found.runs:
    if run.arm in found.arms and label in run.varies:
      rest = [f"{key}={run.varies[key]}" for key in axes if key != label and key in run.varies]
      arms = groups.setdefault(", ".join(rest), {}).setdefault(run.varies[label], [])
      if run.arm not in arms:
        arms.append(run.arm)
  best = {name: max(mean(found.arms[arm]) for arms in by.values() for arm in arms)
          for name, by in groups.items()}  # fmt: skip
  kept = drawing.chosen(sorted(best, key=lambda name: -best[name]), [], groups)
  return {name: groups[name] for name in kept}


def _along(found: Findings, label: str, groups: Groups, name: str, directory: pathlib.Path) -> Plot:
  values = collect.axes(found.runs)[label]
  numeric = collect.numeric(values)
  arms = statistics.within(found.arms)
  with drawing.styled(name):
    figure, (axes,) = drawing.figure(height=3.4 + 0.16 * len(groups))
    for index, (group, by) in enumerate(groups.items()):
      there = sorted(by) if numeric else [value for value in values if value in by]
      places = there if numeric else [values.index(value) for value in there]
      found_ = [[v for arm in by[value] for v in arms[arm].values()] for value in there]
      middle, low, high = np.array([statistics.mean_interval(each) for each in found_]).T
      look = drawing.look(index)
      axes.plot(places, middle, label=drawing.short(group) or None, **look)
      axes.vlines(places, low, high, color=look["color"], alpha=0.6)
    if numeric:
      _scale(axes, values)
    else:
      axes.set_xticks(range(len(values)), [drawing.short(str(v), 20) for v in values])
    axes.set_xlabel(label)
    axes.set_ylabel(words(found.metric))
    drawing.legend(figure, axes)
    caption = (
      "Mean over seeds; bars: 95 % t interval, without what a seed has in common for all arms "
      "(Cousineau and Morey)." + of_all(sum(map(len, groups.values())), list(found.arms))
    )
    return drawing.save(figure, directory / f"{name}.png", f"Along {label}", caption)


def _scale(axes: Axes, values: Sequence[float]) -> None:
  if min(values) > 0 and max(values) / min(values) >= WIDE:
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()


def _frontier_along(
  found: Findings, label: str, groups: Groups, name: str, directory: pathlib.Path
) -> Plot:
  with drawing.styled(name):
    figure, (axes,) = drawing.figure(height=3.6 + 0.16 * len(groups))
    for index, (group, by) in enumerate(groups.items()):
      ends = {value: [way[-1] for arm in by[value] for way in found.paths[arm].values() if way]
              for value in sorted(by)}  # fmt: skip
      middle = np.array([np.mean(each, axis=0) for each in ends.values() if each])
      axes.plot(*middle.T, label=drawing.short(group) or None, **drawing.look(index))
      for value, (kl, reward) in zip((v for v, each in ends.items() if each), middle):
        if len(groups) <= 3 or index == 0:
          axes.annotate(f"{value:g}", (kl, reward), (4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("KL to the start (nats)")
    axes.set_ylabel(words(found.metric))
    drawing.legend(figure, axes)
    title = f"Reward-KL frontier along {label}"
    caption = f"Where training ended, mean over seeds; the numbers are values of {label}."
    return drawing.save(figure, directory / f"{name}.png", title, caption)


def _heat(found: Findings, directory: pathlib.Path) -> Iterator[Plot]:
  """A map of the first two numeric axes that some arm has both of, for each value of the others."""
  axes = collect.axes(found.runs)
  numeric = [label for label, values in axes.items() if collect.numeric(values)]
  crossed = lambda pair: any({*pair} <= run.varies.keys() for run in found.runs)  # noqa: E731
  pair = next(filter(crossed, itertools.combinations(numeric, 2)), None)
  if pair is None:
    return
  down, across = pair
  maps: dict[str, dict[tuple[float, float], float]] = {}
  for run in found.runs:
    if run.arm in found.arms and down in run.varies and across in run.varies:
      rest = ", ".join(f"{k}={run.varies.get(k, '')}" for k in axes if k not in (down, across))
      cell = (run.varies[down], run.varies[across])
      maps.setdefault(rest, {})[cell] = mean(found.arms[run.arm])
  every = [value for cells in maps.values() for value in cells.values()]
  ends = min(every), max(every)
  for place, (rest, cells) in enumerate(itertools.islice(maps.items(), MOST_MAPS)):
    yield _map(found, (down, across), cells, rest, ends, directory / f"map_{place}.png")


def _map(
  found: Findings,
  labels: tuple[str, str],
  cells: Mapping[tuple[float, float], float],
  rest: str,
  ends: tuple[float, float],
  path: pathlib.Path,
) -> Plot:
  rows, columns = (sorted({cell[side] for cell in cells}) for side in (0, 1))
  table = np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows])
  with drawing.styled(path.stem):
    figure, (axes,) = drawing.figure()
    axes.grid(False)
    drawn = axes.pcolormesh(table, cmap="cividis", vmin=ends[0], vmax=ends[1])
    for (y, x), value in np.ndenumerate(table):
      if np.isfinite(value):
        colour = drawing.readable_on([float(part) for part in drawn.to_rgba(value)])
        axes.text(x + 0.5, y + 0.5, f"{value:.3g}", ha="center", va="center", color=colour)
    axes.set_xticks(np.arange(len(columns)) + 0.5, [f"{value:g}" for value in columns])
    axes.set_yticks(np.arange(len(rows)) + 0.5, [f"{value:g}" for value in rows])
    axes.set_ylabel(labels[0])
    axes.set_xlabel(labels[1])
    figure.colorbar(drawn, ax=axes, label=words(found.metric))
    title = f"{labels[0]} and {labels[1]}" + (f", {rest}" if rest else "")
    return drawing.save(figure, path, title, "Mean over seeds.")
