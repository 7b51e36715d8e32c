"""Everything that a report says of one sweep, computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import itertools
import math
import os
import pathlib
from typing import NamedTuple

from larpo_jax.report import collect, factorial, frontier, series, statistics
from larpo_jax.report.collect import Run
from larpo_jax.report.factorial import Factorial
from larpo_jax.report.frontier import Matched, Path
from larpo_jax.report.series import Series
from larpo_jax.report.statistics import SIGNIFICANT, Contrast, Prompts

Arms = Mapping[str, Mapping[int, float]]  # arm -> {seed: value}


class Comparison(NamedTuple):
  """An arm against the baseline. p values are Holm-corrected over the arms."""

  contrast: Contrast
  p: float
  prompts: Prompts | None  # None where the runs wrote no lines of prompts
  matched: Matched | None  # None where the runs did not measure the KL
  matched_p: float  # nan without


class Findings(NamedTuple):
  """One sweep."""

  directory: pathlib.Path
  metric: str
  runs: Sequence[Run]
  missing: Sequence[str]  # runs that have not finished
  diverged: Sequence[Run]  # whose metric is not finite: they are in no comparison
  arms: Arms
  baseline: str
  against: Mapping[str, Comparison]  # the other arms that share a seed with the baseline
  best: str  # the highest mean
  rivals: Mapping[str, tuple[Contrast, float]]  # best minus each other; Holm over all pairs of arms
  series: Sequence[Series]  # of each run
  paths: Mapping[str, Mapping[int, Path]]  # arm -> {seed: path}
  factorial: Factorial | None


def find(directory: str | os.PathLike, metric: str = "", baseline: str = "") -> Findings:
  """What a sweep found; raises ValueError that lists what there is."""
  directory = pathlib.Path(directory)
  found, missing = collect.runs(directory)
  metric = collect.metric_of(found, metric)
  arms = collect.arms(found, metric)
  if not arms:
    raise ValueError(f"{metric} is not finite in any run; name another one with --metric")
  baseline = baseline or next(iter(arms))
  if baseline not in arms:
    raise ValueError(f"no arm {baseline!r}; there are: {'; '.join(arms)}")
  curves = [series.read(run) for run in found]
  paths: dict[str, dict[int, Path]] = {arm: {} for arm in arms}
  for run, curve in zip(found, curves):
    if run.arm in arms:
      paths[run.arm][run.seed] = frontier.path(run, curve, metric)
  best = max(arms, key=lambda arm: mean(arms[arm]))
  return Findings(
    directory=directory,
    metric=metric,
    runs=found,
    missing=missing,
    diverged=[run for run in found if not math.isfinite(run.after[metric])],
    arms=arms,
    baseline=baseline,
    against=_against(found, arms, paths, metric, baseline),
    best=best,
    rivals=rivals_of(best, arms),
    series=curves,
    paths=paths,
    factorial=factorial.factorial(found, metric),
  )


def _against(
  found: Sequence[Run],
  arms: Arms,
  paths: Mapping[str, Mapping[int, Path]],
  metric: str,
  baseline: str,
) -> dict[str, Comparison]:
  there = _prompts(found, baseline, metric)
  result = {}
  for arm in arms:
    if arm != baseline and arms[arm].keys() & arms[baseline].keys():
      contrast = statistics.contrast(arms[arm], arms[baseline])
      prompts = statistics.by_prompt(_prompts(found, arm, metric), there)
      matched = frontier.matched(paths[arm], paths[baseline])
      matched_p = matched.contrast.p if matched else math.nan
      result[arm] = Comparison(contrast, contrast.p, prompts, matched, matched_p)
  ps = statistics.holm([each.p for each in result.values()])
  matched_ps = statistics.holm([each.matched_p for each in result.values()])
  return {
    arm: each._replace(p=p, matched_p=matched_p)
    for (arm, each), p, matched_p in zip(result.items(), ps, matched_ps)
  }


def _prompts(
  found: Sequence[Run], arm: str, metric: str
) -> dict[int, dict[collect.Prompt, tuple[float, float]]]:
  return {run.seed: collect.prompts(run, metric) for run in found if run.arm == arm}


def rivals_of(best: str, arms: Arms) -> dict[str, tuple[Contrast, float]]:
  """The best arm minus each other one, the closest first.

  As the best was chosen by the values that it is compared by, p is corrected for all pairs of arms.
  """
  pairs = [
    (here, there)
    for here, there in itertools.combinations(arms, 2)
    if arms[here].keys() & arms[there].keys()
  ]
  contrasts = [statistics.contrast(arms[here], arms[there]) for here, there in pairs]
  corrected = statistics.holm([each.p for each in contrasts])
  found = {}
  for (here, there), each, p in zip(pairs, contrasts, corrected):
    if best in (here, there):
      other = there if best == here else here
      found[other] = (each if best == here else _turned(each), p)
  return dict(sorted(found.items(), key=lambda item: item[1][0].difference))


def _turned(found: Contrast) -> Contrast:
  """The same with the arms changed over."""
  return found._replace(
    difference=-found.difference, low=-found.high, high=-found.low, effect=-found.effect
  )


def mean(values: Mapping[int, float]) -> float:
  """The mean over seeds."""
  return sum(values.values()) / len(values)


def shown(p: float) -> bool:
  """Whether a difference was shown; a nan shows nothing."""
  return p < SIGNIFICANT
