"""Statistics of reports against SciPy, longhand, and simulated sweeps."""

import math

import numpy as np
import pytest
from scipy import stats

from larpo_jax.report import findings, statistics

SWEEPS = 200


def contrast(arm, baseline):
  return statistics.contrast(dict(enumerate(arm)), dict(enumerate(baseline)))


def by_prompt(arm, baseline, seed=0, weights=None):
  """Arrays [seeds, prompts]."""
  weights = np.ones_like(arm) if weights is None else weights
  sides = (
    {i: {j: (row[j], weights[i, j]) for j in range(len(row))} for i, row in enumerate(side)}
    for side in (arm, baseline)
  )
  return statistics.by_prompt(*sides, seed=seed)


def most(share):
  """More than this many of 200 come about once in 10,000 times."""
  return stats.binom.ppf(1 - 1e-4, SWEEPS, share) / SWEEPS


def least(share):
  return stats.binom.ppf(1e-4, SWEEPS, share) / SWEEPS


def test_a_contrast_is_scipys_paired_t_test(seed):
  rng = np.random.default_rng(seed)
  arm, baseline = rng.normal(size=(2, int(rng.integers(2, 9))))
  found = contrast(arm, baseline)
  wanted = stats.ttest_rel(arm, baseline)
  low, high = wanted.confidence_interval(0.95)
  np.testing.assert_allclose(found[:4], [np.mean(arm - baseline), low, high, wanted.pvalue])
  back = contrast(baseline, arm)
  np.testing.assert_allclose([back.difference, back.effect], [-found.difference, -found.effect])


def test_only_common_seeds_count():
  found = statistics.contrast({0: 1.0, 1: 5.0, 7: 100.0}, {1: 3.0, 0: 0.0, 9: -50.0})
  assert (found.difference, found.seeds) == (1.5, 2)
  with pytest.raises(ValueError, match="common seed"):
    statistics.contrast({0: 1.0}, {1: 1.0})


def test_one_seed_and_equal_seeds_claim_nothing_false():
  assert math.isnan(contrast([1.0], [0.0]).p)
  same = contrast([1.0, 2.0], [1.0, 2.0])
  assert (same.difference, same.p) == (0.0, 1.0)
  assert contrast([2.0, 3.0], [1.0, 2.0]).p == 0.0


def test_holm_is_its_definition(seed):
  rng = np.random.default_rng(seed)
  ps = rng.random(6) ** 3
  found = statistics.holm(ps)
  order = np.argsort(ps)
  wanted = np.minimum(1, np.maximum.accumulate(ps[order] * np.arange(6, 0, -1)))
  np.testing.assert_allclose(np.array(found)[order], wanted)
  assert statistics.holm([0.01, math.nan]) == [0.01, pytest.approx(math.nan, nan_ok=True)]


def test_with_one_prompt_a_seed_the_bootstrap_is_scipys(seed):
  rng = np.random.default_rng(seed)
  arm, baseline = rng.normal(size=(2, 9, 1))
  found, tail = by_prompt(arm, baseline, seed), statistics.tail(9)
  wanted = stats.bootstrap(
    (arm - baseline).T, np.mean, n_resamples=100_000, method="percentile", rng=rng,
    confidence_level=1 - 2 * tail,
  )  # fmt: skip
  # A quantile of N resamples lies between those at tail -+ 5 deviations of its rank.
  slack = 5 * math.sqrt(tail / statistics.RESAMPLES)
  drawn = wanted.bootstrap_distribution
  for end, place in ((found.low, tail), (found.high, 1 - tail)):
    near, far = np.quantile(drawn, np.clip([place - slack, place + slack], 0, 1))
    assert near <= end <= far
  assert found.low < wanted.confidence_interval.high
  assert wanted.confidence_interval.low < found.high


def test_with_normal_seeds_the_bootstrap_is_as_wide_as_the_t_interval(seed):
  rng = np.random.default_rng(seed)
  ratios = []
  for gaps in sweeps(rng, 0.0, seeds=12)[:60]:
    found, wanted = by_prompt(gaps, np.zeros_like(gaps)), contrast(gaps[:, 0], np.zeros(12))
    ratios.append((found.high - found.low) / (wanted.high - wanted.low))
  assert 0.94 < np.mean(ratios) < 1.04  # percentiles as they are give 0.85


def test_the_same_prompts_are_drawn_for_both_arms(seed):
  baseline = np.random.default_rng(seed).normal(size=(4, 30))
  found = by_prompt(baseline + 0.25, baseline)
  np.testing.assert_allclose([found.low, found.high], 0.25)
  assert (found.higher, found.lower, found.seeds, found.prompts) == (1.0, 0.0, 4, 120)


def test_prompts_that_differ_widen_the_interval(seed):
  rng = np.random.default_rng(seed)
  gaps = rng.normal(size=(6, 10))
  even = by_prompt(np.repeat(gaps.mean(1, keepdims=True), 10, 1), np.zeros((6, 10)))
  own = by_prompt(gaps, np.zeros((6, 10)))
  assert own.high - own.low > even.high - even.low


def test_weights_count_prompts(seed):
  rng = np.random.default_rng(seed)
  gaps = rng.normal(size=(3, 12))
  zero = np.zeros_like(gaps)
  plain = by_prompt(gaps, zero)
  assert by_prompt(gaps, zero, weights=np.full_like(gaps, 2.5)) == pytest.approx(plain)
  weights = np.ones_like(gaps)
  weights[:, 6:] = 0
  half = by_prompt(gaps[:, :6], zero[:, :6])
  assert by_prompt(gaps, zero, weights=weights) == pytest.approx(half)
  alone = np.eye(1, 12)  # one prompt of twelve, which two of three draws have
  weight = 1 + 1e9 * alone
  assert by_prompt(alone, 0 * alone, weights=weight).high == pytest.approx(1)
  assert by_prompt(alone, 0 * alone).high < 0.5
  heavy = np.ones_like(gaps)
  heavy[:, 0] = 1e9
  shares = by_prompt(gaps, zero, weights=heavy)
  assert shares.higher == pytest.approx((gaps[:, 0] > 0).mean(), abs=1e-7)


def test_prompts_of_one_arm_alone_do_not_count(seed):
  rng = np.random.default_rng(seed)
  here = {0: {i: (rng.normal(), 1.0) for i in range(8)}, 1: {0: (1.0, 1.0)}}
  there = {0: {i: (rng.normal(), 1.0) for i in range(4, 12)}, 2: {0: (1.0, 1.0)}}
  found = statistics.by_prompt(here, there)
  assert (found.seeds, found.prompts) == (1, 4)
  assert statistics.by_prompt({0: {0: (1.0, 1.0)}}, {0: {1: (1.0, 1.0)}}) is None
  assert statistics.by_prompt({0: {}}, {0: {}}) is None


def sweeps(rng, effect, seeds, prompts=1, noise=0.0):
  """Gaps [seeds, prompts] of 200 sweeps: the effect, a seed's deviation of 1, and the prompts'."""
  size = (SWEEPS, seeds, 1)
  return effect + rng.normal(size=size) + noise * rng.normal(size=(*size[:2], prompts))


def bootstrap_excludes(gaps, value):
  found = [by_prompt(each, np.zeros_like(each)) for each in gaps]
  return np.mean([not each.low <= value <= each.high for each in found])


def test_the_bootstrap_covers_planted_effects(seed):
  rng = np.random.default_rng(seed)
  effect = rng.normal()
  gaps = sweeps(rng, effect, seeds=8, prompts=16, noise=2.0)
  assert bootstrap_excludes(gaps, effect) <= most(0.05)
  wrong = effect + 2.0  # as far off as makes an interval that has it too wide to be of use
  assert bootstrap_excludes(gaps, wrong) >= 0.9


def test_sweeps_without_an_effect_make_no_more_false_claims_than_they_may(seed):
  rng = np.random.default_rng(seed)
  told = best_told = 0
  for _ in range(SWEEPS):
    values = rng.normal(size=(5, 5)) + rng.normal(size=5)  # seeds differ, for all arms
    told += min(statistics.holm([contrast(v, values[0]).p for v in values[1:]])) < 0.05
    arms = {f"{i}": dict(enumerate(v)) for i, v in enumerate(values)}
    best = max(arms, key=lambda arm: findings.mean(arms[arm]))
    best_told += any(findings.shown(p) for _, p in findings.rivals_of(best, arms).values())
  assert told / SWEEPS <= most(0.05)
  assert best_told / SWEEPS <= most(0.05)
  assert bootstrap_excludes(sweeps(rng, 0.0, seeds=8, prompts=8, noise=2.0), 0.0) <= most(0.05)


def test_a_planted_effect_is_found_as_often_as_the_formula_says(seed):
  seeds = 12
  gaps = sweeps(np.random.default_rng(seed), 1.0, seeds)
  critical = stats.t.ppf(1 - statistics.SIGNIFICANT / 2, seeds - 1)
  power = stats.nct.sf(critical, seeds - 1, math.sqrt(seeds))
  found = np.mean([contrast(each[:, 0], np.zeros(seeds)).p < 0.05 for each in gaps])
  assert least(power) <= found <= most(power)
  assert least(power) <= bootstrap_excludes(gaps, 0.0) <= most(power)
  assert statistics.power(1.0, seeds) == pytest.approx(power, abs=1e-6)


def test_the_number_of_seeds_is_the_first_that_is_enough(seed):
  effect = np.random.default_rng(seed).uniform(0.2, 2.0)
  need = statistics.seeds_for(effect)
  assert statistics.power(effect, need) >= 0.8
  assert need == 2 or statistics.power(effect, need - 1) < 0.8
  assert statistics.seeds_for(-effect) == need
  assert statistics.seeds_for(effect, 0.005) > need
  assert statistics.seeds_for(0.0) is None
  assert statistics.seeds_for(math.inf) is None


def test_intervals_within_seeds_are_those_of_differences(seed):
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(2, 6)) + 100 * rng.normal(size=6)
  arms = {name: dict(enumerate(row)) for name, row in zip("ab", values)}
  found = statistics.within(arms)
  gap = contrast(*values)
  for name, row in zip("ab", values):
    mean, low, high = statistics.mean_interval(list(found[name].values()))
    assert mean == pytest.approx(row.mean())
    assert (high - low) * math.sqrt(2) == pytest.approx(gap.high - gap.low)
  alone = {"a": {0: 1.0}, "b": {1: 2.0}}
  assert statistics.within(alone) == alone
