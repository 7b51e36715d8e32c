"""Several sweeps of the same arms, as in several worlds or data sets: which arm wins where."""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import math
import pathlib
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator
import numpy as np
from scipy import stats

from larpo_jax.report import drawing, sentences
from larpo_jax.report.drawing import Plot
from larpo_jax.report.findings import Findings, mean, shown
from larpo_jax.report.sections import Section
from larpo_jax.report.tables import Cell, Table, number

READING = (
  "**Ranks**: 1 is the highest mean of a directory; equal means share a rank. **=** stands at arms "
  "of which no difference to the directory's best arm was shown. **Spearman** and **Kendall** "
  "compare the orders of two directories: 1 is the same order, -1 the opposite one; p, exact "
  "where no ranks are shared, is of no agreement at all, and never small with fewer than five arms."
)


class Ranks(NamedTuple):
  """The arms that all directories have, and their ranks in each."""

  names: Sequence[str]  # of the directories
  arms: Sequence[str]
  means: np.ndarray  # [arms, directories]
  ranks: np.ndarray  # [arms, directories]; 1 is the highest


class Agreement(NamedTuple):
  """How far two directories order the arms alike; nan where all arms of one are equal."""

  pair: tuple[str, str]
  spearman: float
  kendall: float
  kendall_p: float


def ranks(every: Sequence[Findings]) -> Ranks:
  """Raises ValueError where fewer than two arms are in all directories."""
  arms = [arm for arm in every[0].arms if all(arm in each.arms for each in every)]
  if len(arms) < 2:
    raise ValueError(
      f"the directories have {len(arms)} arms in common, and a comparison takes two: arms are the "
      f"same where the same settings vary, as in {next(iter(every[0].arms))!r}"
    )
  means = np.array([[mean(each.arms[arm]) for each in every] for arm in arms])
  return Ranks(
    names([each.directory for each in every]), arms, means, stats.rankdata(-means, axis=0)
  )


def names(directories: Sequence[pathlib.Path]) -> list[str]:
  """The shortest ends of paths that are different."""
  parts = [path.resolve().parts for path in directories]
  if len(set(parts)) < len(parts):
    raise ValueError("a directory was given twice; give each once")
  for count in range(1, max(map(len, parts)) + 1):
    ends = ["/".join(each[-count:]) for each in parts]
    if len(set(ends)) == len(ends):
      return ends
  return ["/".join(each) for each in parts]


def agreements(found: Ranks) -> list[Agreement]:
  """Of every two directories."""
  result = []
  for one, two in itertools.combinations(range(len(found.names)), 2):
    here, there = found.means[:, one], found.means[:, two]
    pair = (found.names[one], found.names[two])
    if np.ptp(here) == 0 or np.ptp(there) == 0:
      result.append(Agreement(pair, *[math.nan] * 3))
      continue
    spearman, kendall = stats.spearmanr(here, there), stats.kendalltau(here, there)
    numbers = (spearman.statistic, kendall.statistic, kendall.pvalue)
    result.append(Agreement(pair, *map(float, numbers)))
  return result


def sections(every: Sequence[Findings], directory: pathlib.Path) -> list[Section]:
  """The report across directories; draws directory/plots/across.png."""
  found = ranks(every)
  alike = agreements(found)
  left = sum(len(each.arms) - len(found.arms) for each in every)
  texts = [" ".join(_answer(found, every))]
  if left:
    texts.append(f"Only the {len(found.arms)} arms that all directories have are compared.")
  return [
    Section("answer", "", texts, [_order(each) for each in alike]),
    Section("ranks", "Which arm wins where", tables=[_table(found, every)]),
    Section("agreement", "Do the directories agree", tables=[_agreement(alike)]),
    Section("plots", "Plots", plots=[_plot(found, directory / "plots")]),
    Section("reading", "How to read this", [READING]),
  ]


def _answer(found: Ranks, every: Sequence[Findings]) -> list[str]:
  overall = found.ranks.mean(1)
  best = int(np.argmin(overall))
  wins = int((found.ranks[best] == 1).sum())
  said = [
    f"{sentences.code(found.arms[best])} has the best mean rank, {overall[best]:.3g} "
    f"among {len(found.arms)} arms, and the highest mean in {wins} of {len(found.names)} "
    f"directories."
  ]
  for place, (name, each) in enumerate(zip(found.names, every)):
    first = found.arms[int(np.argmin(found.ranks[:, place]))]
    metric = sentences.words(each.metric)
    said.append(f"In {sentences.code(name)} {sentences.code(first)} has the highest {metric}.")
  return said


def _order(each: Agreement) -> str:
  names_ = " and ".join(sentences.code(name) for name in each.pair)
  if math.isnan(each.kendall):
    return f"{names_}: all arms of one are equal, which is no order"
  said = "the arms' order agrees" if each.kendall > 0 else "the arms' order is the opposite"
  if not shown(each.kendall_p):
    said = "no agreement of the arms' order was shown"
  return f"{names_}: {said} (Kendall {each.kendall:+.2f}, p = {each.kendall_p:.2g})"


def _table(found: Ranks, every: Sequence[Findings]) -> Table:
  overall = found.ranks.mean(1)
  rows = []
  for place in np.argsort(overall, kind="stable"):
    arm = found.arms[place]
    cells = [Cell(arm), number(float(overall[place]), ".3g")]
    for column, each in enumerate(every):
      value, rank = float(found.means[place, column]), float(found.ranks[place, column])
      mark = " =" if arm == each.best or _as_good(each, arm) else ""
      cells.append(Cell(f"{value:.4g} ({rank:g}){mark}", value))
    rows.append(cells)
  heads = [f"{name}: {sentences.words(each.metric)}" for name, each in zip(found.names, every)]
  return Table("Ranks", ["arm", "mean rank", *heads], rows, "Mean over seeds (rank).")


def _as_good(each: Findings, arm: str) -> bool:
  return arm in each.rivals and not shown(each.rivals[arm][1])


def _agreement(alike: Sequence[Agreement]) -> Table:
  rows = [
    [
      *(Cell(name) for name in each.pair),
      number(each.spearman, "+.2f"),
      number(each.kendall, "+.2f"),
      number(each.kendall_p, ".2g"),
    ]
    for each in alike
  ]
  return Table("Agreement", ["directory", "and", "Spearman", "Kendall", "p of Kendall"], rows)


def _plot(found: Ranks, directory: pathlib.Path) -> Plot:
  overall = found.ranks.mean(1)
  ranked = [found.arms[i] for i in np.argsort(overall, kind="stable")]
  lines = drawing.chosen(ranked, [], found.arms)
  with drawing.styled("across"):
    figure, (axes,) = drawing.figure(height=3.2 + 0.16 * len(lines))
    for index, arm in enumerate(lines):
      row = found.ranks[found.arms.index(arm)]
      axes.plot(range(len(row)), row, label=drawing.short(arm), **drawing.look(index))
    axes.set_xticks(range(len(found.names)), [drawing.short(name, 24) for name in found.names])
    axes.set_xlim(-0.3, len(found.names) - 0.7)
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_ylabel("rank (1: highest)")
    drawing.legend(figure, axes)
    caption = "Rank of each arm's mean in each directory."
    if len(lines) < len(found.arms):
      caption += f" The best {len(lines)} of {len(found.arms)} arms."
    return drawing.save(figure, directory / "across.png", "Ranks", caption)
