"""Differences between arms, paired by seed and by prompt, and how certain they are.

Two intervals answer two questions. The t interval and its p are of seeds: what other seeds would
give, drawn as these were, each with its own prompts; they are honest with few seeds, and what the
report claims rests on them alone. The bootstrap interval looks at the prompts too: seeds are drawn
again with replacement, and within each the prompts, the same ones for both arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

SIGNIFICANT = 0.05
POWER = 0.8
RESAMPLES = 10_000
POOL = 1_000  # means over drawn prompts of each seed, from which the resamples take theirs
MOST_SEEDS = 1_000
Values = Mapping[int, float]  # seed -> value
Weighted = Mapping[Any, tuple[float, float]]  # prompt -> value and weight


class Contrast(NamedTuple):
  """An arm against the baseline, seed by seed."""

  difference: float  # mean over the seeds that both have
  low: float  # of the 95 % interval; nan with fewer than two seeds
  high: float
  p: float  # two-sided, of a paired t test; nan with fewer than two seeds
  effect: float  # the difference in standard deviations of the differences (Cohen's d_z)
  seeds: int


class Prompts(NamedTuple):
  """An arm against the baseline, prompt by prompt within each seed."""

  low: float  # of the 95 % hierarchical bootstrap interval of the mean difference
  high: float
  higher: float  # share of prompts, by weight, where the arm is above the baseline
  lower: float
  seeds: int
  prompts: int  # of all seeds


def contrast(arm: Values, baseline: Values) -> Contrast:
  """Compares {seed: value} of two arms on the seeds that both have.

  The t test and its interval are for other seeds than these, drawn as they were. Raises ValueError
  where no seed is shared.
  """
  shared = sorted(arm.keys() & baseline.keys())
  if not shared:
    raise ValueError("two arms without a common seed cannot be compared")
  gaps = np.array([arm[seed] - baseline[seed] for seed in shared], np.float64)
  mean, n = float(gaps.mean()), len(gaps)
  if n < 2:
    return Contrast(mean, math.nan, math.nan, math.nan, math.nan, n)
  spread = float(gaps.std(ddof=1))
  if spread == 0.0:  # as where both arms are one: no difference is certain, any other one is too
    return Contrast(mean, mean, mean, float(mean == 0.0), math.inf * np.sign(mean or math.nan), n)
  found = stats.ttest_1samp(gaps, 0.0)
  low, high = found.confidence_interval(0.95)
  return Contrast(mean, float(low), float(high), float(found.pvalue), mean / spread, n)


def by_prompt(
  arm: Mapping[int, Weighted], baseline: Mapping[int, Weighted], seed: int = 0
) -> Prompts | None:
  """Compares {seed: {prompt: (value, weight)}} on what both have; None where that is nothing.

  The interval is the expanded percentile one (Hesterberg 2015): its tails are as far out as makes
  it a t interval where the data are normal. With one seed it is of that seed's prompts alone.
  `seed` is of the resampling.
  """
  rng = np.random.default_rng(seed)
  pools, gaps, weights = [], [], []
  for number in sorted(arm.keys() & baseline.keys()):
    here, there = arm[number], baseline[number]
    keys = [key for key in here if key in there and here[key][1] > 0]
    if keys:
      gap = np.array([here[key][0] - there[key][0] for key in keys])
      weight = np.array([here[key][1] for key in keys])
      pools.append(_drawn_means(gap, weight, rng))
      gaps.append(gap)
      weights.append(weight)
  if not pools:
    return None
  n = len(pools)
  size = (RESAMPLES, n)
  means = np.stack(pools)[rng.integers(n, size=size), rng.integers(POOL, size=size)].mean(1)
  low, high = np.quantile(means, [tail(n), 1 - tail(n)])
  gap, weight = np.concatenate(gaps), np.concatenate(weights)
  higher, lower = (float(np.average(side, weights=weight)) for side in (gap > 0, gap < 0))
  return Prompts(float(low), float(high), higher, lower, n, len(gap))


def _drawn_means(gap: np.ndarray, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Weighted means over prompts drawn with replacement, [POOL]."""
  drawn = rng.integers(len(gap), size=(POOL, len(gap)))
  return (gap * weight)[drawn].sum(1) / weight[drawn].sum(1)


def tail(n: int) -> float:
  """What a 95 % bootstrap interval over n units leaves out at each side."""
  if n < 2:
    return 0.025
  return float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1)))


def within(arms: Mapping[str, Values]) -> dict[str, dict[int, float]]:
  """Values without what a seed has in common for all arms, so that their spread is between arms.

  Cousineau 2005 with Morey's 2008 factor. Only seeds of all arms count; the values as they are
  where there is no such seed, or one arm.
  """
  shared = sorted(set.intersection(*(set(values) for values in arms.values())))
  if not shared or len(arms) < 2:
    return {arm: dict(values) for arm, values in arms.items()}
  table = np.array([[values[seed] for seed in shared] for values in arms.values()])
  means = table.mean(1, keepdims=True)
  rest = table - table.mean(0) - means + table.mean()
  table = means + rest * math.sqrt(len(arms) / (len(arms) - 1))
  return {arm: dict(zip(shared, map(float, row))) for arm, row in zip(arms, table)}


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
  """Mean and 95 % t interval over seeds; the interval is nan with fewer than two."""
  array = np.asarray(values, np.float64)
  mean, n = float(array.mean()), len(array)
  if n < 2:
    return mean, math.nan, math.nan
  half = float(stats.t.ppf(0.975, n - 1) * array.std(ddof=1) / math.sqrt(n))
  return mean, mean - half, mean + half


def power(effect: float, seeds: int, level: float = SIGNIFICANT) -> float:
  """How often a paired t test at a level finds a difference of `effect` standard deviations."""
  critical = stats.f.isf(level, 1, seeds - 1)  # the square of t
  return float(stats.ncf.sf(critical, 1, seeds - 1, seeds * effect**2))


def seeds_for(effect: float, level: float = SIGNIFICANT) -> int | None:
  """The fewest seeds that find such a difference four times in five; None: more than 1,000."""
  if not math.isfinite(effect) or power(effect, MOST_SEEDS, level) < POWER:
    return None
  low, high = 2, MOST_SEEDS
  while low < high:
    middle = (low + high) // 2
    low, high = (low, middle) if power(effect, middle, level) >= POWER else (middle + 1, high)
  return low


def holm(ps: Sequence[float]) -> list[float]:
  """p values corrected for there being several, so that any false claim at all is as rare as one.

  Holm 1979. A nan stays nan and counts for nothing.
  """
  known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
  corrected, highest = [math.nan] * len(ps), 0.0
  for rank, (p, i) in enumerate(known):
    highest = max(highest, min(1.0, (len(known) - rank) * p))
    corrected[i] = highest
  return corrected
