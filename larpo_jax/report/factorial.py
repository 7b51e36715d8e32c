"""Main effects and two-way interactions of a sweep in which every value meets every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from larpo_jax.report import collect, statistics
from larpo_jax.report.collect import Run


class Level(NamedTuple):
  """A value of an axis, over all values of the others."""

  value: Any
  mean: float
  effect: float  # mean minus that of all
  low: float  # of the effect's 95 % t interval over seeds
  high: float


class Term(NamedTuple):
  """An axis, or two of them, in an analysis of variance with the seeds as its blocks."""

  axes: tuple[str, ...]
  size: float  # root mean square of what it adds to an arm
  share: float  # of the variance between arms
  p: float  # Holm-corrected over the terms; nan with one seed
  levels: tuple[Level, ...]  # of a main effect


class Factorial(NamedTuple):
  """What each axis does, or why that cannot be told."""

  axes: Mapping[str, Sequence[Any]]
  terms: tuple[Term, ...]
  seeds: int
  why_not: str = ""


def factorial(found: Sequence[Run], metric: str) -> Factorial | None:
  """The effects on a metric; None where fewer than two axes vary.

  Only seeds with every combination count. p is of an F test whose error is how much a term's effect
  differs between seeds, with Greenhouse and Geisser's correction; at two values it is the paired t
  test. Axes that no seed crosses completely give no effects, only `why_not`.
  """
  axes = collect.axes(found)
  if len(axes) < 2:
    return None
  shape = [len(values) for values in axes.values()]
  partial = [label for label in axes if not collect.everywhere(found, label)]
  if partial:
    return Factorial(axes, (), 0, f"some arms have no {partial[0]}")
  cells: dict[int, np.ndarray] = {}
  for run in found:
    index = tuple(values.index(run.varies[label]) for label, values in axes.items())
    cells.setdefault(run.seed, np.full(shape, np.nan))[index] = run.after[metric]
  whole = [table for table in cells.values() if np.isfinite(table).all()]
  if not whole:
    most = max(int(np.isfinite(table).sum()) for table in cells.values())
    why = f"no seed has all {math.prod(shape)} combinations of {', '.join(axes)}: one has {most}"
    return Factorial(axes, (), 0, why)
  return Factorial(axes, tuple(_terms(np.stack(whole), axes)), len(whole))


def _terms(table: np.ndarray, axes: Mapping[str, Sequence[Any]]) -> list[Term]:
  """table: [seeds, values of the first axis, of the second, ...]."""
  labels = list(axes)
  total = float(np.var(table.mean(0)))
  found = []
  for count in (1, 2):
    for places in itertools.combinations(range(len(labels)), count):
      effects = effects_of(table, places)  # [seeds, values..]
      size = float(np.mean(np.square(effects.mean(0))))
      share = size / total if total else 0.0
      levels = _levels(table, effects, places[0], axes[labels[places[0]]]) if count == 1 else ()
      names = tuple(labels[place] for place in places)
      found.append(Term(names, math.sqrt(size), share, p_of(effects), levels))
  corrected = statistics.holm([term.p for term in found])
  return [term._replace(p=p) for term, p in zip(found, corrected)]


def effects_of(table: np.ndarray, places: Sequence[int]) -> np.ndarray:
  """What axes add to the mean beyond the axes in them: [seeds, values of those axes]."""
  others = tuple(i + 1 for i in range(table.ndim - 1) if i not in places)
  effects = table.mean(others)
  for axis in range(1, effects.ndim):
    effects = effects - effects.mean(axis, keepdims=True)
  return effects


def p_of(effects: np.ndarray) -> float:
  """The F test of effects [seeds, values..] that are centred along every axis but the seeds'."""
  n = len(effects)
  if n < 2:
    return math.nan
  freedom = math.prod(size - 1 for size in effects.shape[1:])
  flat = effects.reshape(n, -1)
  covariance = np.atleast_2d(np.cov(flat, rowvar=False))
  noise, signal = float(np.trace(covariance)), n * float(np.square(flat.mean(0)).sum())
  if noise <= 1e-12 * signal or noise == 0.0:
    return float(signal == 0.0)
  evenness = noise**2 / (freedom * float(np.square(covariance).sum()))  # 1: as the F test assumes
  return float(stats.f.sf(signal / noise, evenness * freedom, evenness * freedom * (n - 1)))


def _levels(
  table: np.ndarray, effects: np.ndarray, place: int, values: Sequence[Any]
) -> tuple[Level, ...]:
  means = np.moveaxis(table, place + 1, 0).reshape(len(values), -1).mean(1)
  intervals = [statistics.mean_interval(column) for column in effects.T]
  return tuple(Level(v, float(m), *each) for v, m, each in zip(values, means, intervals))
