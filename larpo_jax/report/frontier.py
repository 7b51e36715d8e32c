"""Reward against KL: what an arm gains for how far it moved, and arms compared at the same KL."""

from __future__ import annotations

from collections.abc import Mapping
import itertools
import math
from typing import NamedTuple

from larpo_jax.report import statistics
from larpo_jax.report.collect import Run
from larpo_jax.report.series import Series
from larpo_jax.report.statistics import Contrast

KL = "kl"
Path = list[tuple[float, float]]  # KL in nats and reward, at the start and as training went on


class Matched(NamedTuple):
  """Two arms at the largest KL that both reach, seed by seed."""

  contrast: Contrast
  kl: float  # nats, mean over seeds


def path(run: Run, series: Series, metric: str) -> Path:
  """Where a run was, from its start on; [] where it did not measure the KL.

  The start has KL 0, whatever was estimated there: the policy is the reference. Where a run was not
  evaluated along the way, its path is the start and the end.
  """
  kls = dict(zip(*series.evaluated.get(f"eval_{KL}", ([], []))))
  rewards = dict(zip(*series.evaluated.get(f"eval_{metric}", ([], []))))
  along = [(kls[step], rewards[step]) for step in sorted(kls.keys() & rewards.keys()) if step > 0]
  along = along or [(run.after.get(KL, math.nan), run.after[metric])]
  start = rewards.get(0, run.before.get(metric, math.nan))
  found = [(0.0, start), *along]
  return found if all(math.isfinite(number) for point in found for number in point) else []


def at(way: Path, kl: float) -> float:
  """The reward where a path first reaches a KL, linear between its points.

  Raises ValueError where it never does.
  """
  if kl <= way[0][0]:
    return way[0][1]
  for (here, reward), (there, later) in itertools.pairwise(way):
    if there >= kl:
      return reward + (later - reward) * (kl - here) / (there - here)
  raise ValueError(f"the path ends before a KL of {kl:.4g} nats")


def matched(arm: Mapping[int, Path], baseline: Mapping[int, Path]) -> Matched | None:
  """Compares {seed: path} of two arms; None where no seed has paths of both."""
  seeds = [seed for seed in sorted(arm.keys() & baseline.keys()) if arm[seed] and baseline[seed]]
  if not seeds:
    return None
  kls = {seed: max(0.0, min(reach(arm[seed]), reach(baseline[seed]))) for seed in seeds}
  sides = ({seed: at(side[seed], kls[seed]) for seed in seeds} for side in (arm, baseline))
  return Matched(statistics.contrast(*sides), sum(kls.values()) / len(kls))


def reach(way: Path) -> float:
  """The largest KL of a path."""
  return max(kl for kl, _ in way)
