"""What runs wrote while they trained, as series over steps, and their mean over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
import re
from typing import NamedTuple

import numpy as np

from larpo_jax import writers
from larpo_jax.report import statistics
from larpo_jax.report.collect import Run

ROUNDS = "rounds"
BINS = 60  # points of a curve that is drawn
Points = tuple[list[float], list[float]]  # steps, values


class Series(NamedTuple):
  """One run's: name -> steps and values."""

  training: Mapping[str, Points]  # over all stages of alignment, one after the other
  evaluated: Mapping[str, Points]  # over training steps, or rounds if only these were evaluated
  unit: str  # of the steps of `evaluated`


class Band(NamedTuple):
  """A curve's mean over seeds with its 95 % t interval, nan where a step has but one seed."""

  steps: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def read(run: Run) -> Series:
  """The series of a run; the supervised stage, which comes before alignment, is left out."""
  training: dict[str, Points] = {}
  rounds: dict[str, Points] = {}
  evaluated: dict[str, Points] = {}
  offset = last = 0.0
  stage = ""
  ends: dict[int, float] = {}  # of each round, in steps
  for row in writers.read(run.directory):
    if row["stage"] == ROUNDS:
      _add(rounds, row, row["step"])
    elif not row["stage"].startswith("supervised"):
      if row["stage"] != stage:
        stage, offset = row["stage"], last
      last = max(last, offset + row["step"])
      _add(training, row, offset + row["step"])
      if found := re.match(r"round_(\d+)", stage):
        ends[int(found[1])] = last
  for name in [name for name in training if name.startswith("eval_")]:
    evaluated[name] = training.pop(name)
  if rounds and not evaluated:
    return Series(training, rounds, "round")
  starts = lambda number: max([end for n, end in ends.items() if n < number], default=0.0)  # noqa: E731
  for name in evaluated.keys() & rounds.keys():
    steps, values = rounds[name]
    # A step that is not logged has no place: then the end of a round hides an evaluation in it.
    points = dict(zip(*evaluated[name])) | dict(zip(map(starts, steps), values))
    evaluated[name] = (sorted(points), [points[step] for step in sorted(points)])
  return Series(training, evaluated, "step")


def _add(series: dict[str, Points], row: Mapping[str, float], step: float) -> None:
  for name, value in row.items():
    if name not in ("stage", "step") and math.isfinite(value):
      steps, values = series.setdefault(name, ([], []))
      steps.append(step)
      values.append(value)


def change(points: Points) -> Points:
  """The same since its first value."""
  steps, values = points
  return steps, [value - values[0] for value in values]


def minus(points: Points, other: Points) -> Points:
  """The difference at the steps that both have."""
  there = dict(zip(*other))
  kept = [(step, value - there[step]) for step, value in zip(*points) if step in there]
  return [step for step, _ in kept], [value for _, value in kept]


def band(seeds: Sequence[Points]) -> Band:
  """The mean over seeds; with more than 60 different steps, of the means within 60 equal bins."""
  every = np.unique(np.concatenate([steps for steps, _ in seeds]))
  if len(every) > BINS:
    edges = np.linspace(every[0], every[-1], BINS + 1)
    places = [
      np.clip(np.searchsorted(edges, steps, "right") - 1, 0, BINS - 1) for steps, _ in seeds
    ]
    every = (edges[1:] + edges[:-1]) / 2
  else:
    places = [np.searchsorted(every, steps) for steps, _ in seeds]
  table = np.full((len(seeds), len(every)), np.nan)
  for row, where, (_, values) in zip(table, places, seeds):
    counts = np.bincount(where, minlength=len(every))
    sums = np.bincount(where, values, minlength=len(every))
    row[counts > 0] = sums[counts > 0] / counts[counts > 0]
  kept = ~np.isnan(table).all(0)
  columns = [column[~np.isnan(column)] for column in table.T[kept]]
  found = np.array([statistics.mean_interval(column) for column in columns]).T
  return Band(every[kept], *found)
