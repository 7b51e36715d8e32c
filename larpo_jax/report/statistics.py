"""Differences between arms over their seeds, and how certain they are."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np
from scipy import stats


class Contrast(NamedTuple):
  """An arm against the baseline, seed by seed."""

  difference: float  # mean over the seeds that both have
  low: float  # of the 95 % interval; nan with fewer than two seeds
  high: float
  p: float  # two-sided, of a paired t test; nan with fewer than two seeds
  effect: float  # the difference in standard deviations of the differences (Cohen's d_z)
  seeds: int


def contrast(arm: dict[int, float], baseline: dict[int, float]) -> Contrast:
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
