"""The report against SciPy and simulated sweeps: no false claims, planted effects found."""

import csv
import json
import math

import numpy as np
import pytest
from scipy import stats

from larpo_jax.report import __main__ as main
from larpo_jax.report import statistics


def sweep(directory, arms, metric="gold/reward"):
  """A finished sweep: arm -> {seed: value}; None has not finished."""
  index = []
  for point, (arm, values) in enumerate(arms.items()):
    for seed, value in values.items():
      name = f"loss={arm},seed={seed}"
      index.append(dict(name=name, point=point, seed=seed, varies={"loss": arm}))
      if value is not None:
        (directory / name / "results").mkdir(parents=True)
        summary = {"before": {metric: 0.0, "length": 1.0}, "after": {metric: value, "length": 2.0}}
        (directory / name / "results" / "summary.json").write_text(json.dumps(summary))
  directory.mkdir(exist_ok=True)
  (directory / "sweep.json").write_text(json.dumps(index))
  return directory


def test_a_contrast_is_scipys_paired_t_test(seed):
  rng = np.random.default_rng(seed)
  n = int(rng.integers(2, 9))
  arm, baseline = rng.normal(size=(2, n))
  found = statistics.contrast(dict(enumerate(arm)), dict(enumerate(baseline)))
  wanted = stats.ttest_rel(arm, baseline)
  low, high = wanted.confidence_interval(0.95)
  np.testing.assert_allclose(found[:4], [np.mean(arm - baseline), low, high, wanted.pvalue])
  back = statistics.contrast(dict(enumerate(baseline)), dict(enumerate(arm)))
  np.testing.assert_allclose([back.difference, back.effect], [-found.difference, -found.effect])


def test_only_common_seeds_count():
  found = statistics.contrast({0: 1.0, 1: 5.0, 7: 100.0}, {1: 3.0, 0: 0.0, 9: -50.0})
  assert (found.difference, found.seeds) == (1.5, 2)
  with pytest.raises(ValueError, match="common seed"):
    statistics.contrast({0: 1.0}, {1: 1.0})


def test_one_seed_and_equal_seeds_claim_nothing_false():
  assert math.isnan(statistics.contrast({0: 1.0}, {0: 0.0}).p)
  same = statistics.contrast({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
  assert (same.difference, same.p) == (0.0, 1.0)
  assert statistics.contrast({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).p == 0.0


def test_holm_is_its_definition(seed):
  rng = np.random.default_rng(seed)
  ps = rng.random(6) ** 3
  found = statistics.holm(ps)
  order = np.argsort(ps)
  wanted = np.minimum(1, np.maximum.accumulate(ps[order] * np.arange(6, 0, -1)))
  np.testing.assert_allclose(np.array(found)[order], wanted)
  assert statistics.holm([0.01, math.nan]) == [0.01, pytest.approx(math.nan, nan_ok=True)]


def claims(rng, effect, arms=5, seeds=5, sweeps=200):
  """Share of simulated sweeps in which any of the first arm's rivals is told to be different."""
  told = 0
  for _ in range(sweeps):
    values = rng.normal(size=(arms, seeds)) + rng.normal(size=seeds)  # seeds differ, for all arms
    values[1:] += effect
    found = [
      statistics.contrast(dict(enumerate(v)), dict(enumerate(values[0]))) for v in values[1:]
    ]
    told += min(statistics.holm([each.p for each in found])) < main.SIGNIFICANT
  return told / sweeps


def test_sweeps_without_an_effect_make_no_more_false_claims_than_they_may(seed):
  share = claims(np.random.default_rng(seed), 0.0)
  assert share <= stats.binom.ppf(0.9999, 200, main.SIGNIFICANT) / 200


def test_a_planted_effect_is_found_as_often_as_the_formula_says(seed):
  sigma, seeds = math.sqrt(2.0), 12  # of a difference of two arms
  rng = np.random.default_rng(seed)
  found = claims(rng, 1.0 * sigma, arms=2, seeds=seeds)
  critical = stats.t.ppf(1 - main.SIGNIFICANT / 2, seeds - 1)
  power = stats.nct.sf(critical, seeds - 1, math.sqrt(seeds))
  low, high = stats.binom.ppf([1e-4, 1 - 1e-4], 200, power) / 200
  assert low <= found <= high


def test_the_report_says_which_is_better(tmp_path, capsys):
  arms = {
    "dpo": {0: 0.50, 1: 0.55, 2: 0.60},
    "lambdarank": {0: 0.60, 1: 0.66, 2: 0.70},
    "listmle": {0: 0.40, 1: 0.70, 2: None},
  }
  directory = sweep(tmp_path / "objectives", arms)
  assert main.main([str(directory)]) == 0
  text = (directory / "report.md").read_text()
  assert text in capsys.readouterr().out
  assert "`loss=lambdarank` - `loss=dpo`: +0.1033 [" in text
  assert "n = 3 seeds: better" in text
  assert "`loss=listmle` - `loss=dpo`: +0.025 [" in text
  assert "no difference was shown" in text
  assert "**1 runs are missing**: loss=listmle,seed=2" in text
  rows = list(csv.DictReader((directory / "results.csv").open()))
  assert len(rows) == 8
  assert rows[3] == {
    "loss": "lambdarank", "seed": "0", "before gold/reward": "0.0", "after gold/reward": "0.6",
    "before length": "1.0", "after length": "2.0",
  }  # fmt: skip


def test_the_report_corrects_for_the_number_of_arms(tmp_path):
  values = {0: 0.1, 1: 0.2, 2: 0.35}
  arms = {"a": {0: 0.0, 1: 0.0, 2: 0.0}, "b": values, "c": values}
  p = statistics.contrast(values, arms["a"]).p
  text = main.report(sweep(tmp_path, arms))
  assert f"p = {2 * p:.2g}," in text
  assert f"p = {p:.2g}," not in text


def test_another_baseline_turns_the_signs(tmp_path):
  arms = {"a": {0: 0.1, 1: 0.2, 2: 0.31}, "b": {0: 0.5, 1: 0.61, 2: 0.7}}
  directory = sweep(tmp_path, arms)
  assert "`loss=b` - `loss=a`: +0.4" in main.report(directory)
  turned = main.report(directory, baseline="loss=b")
  assert "`loss=a` - `loss=b`: -0.4" in turned
  assert "worse" in turned


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--metric=beauty"], "the runs have: gold/reward, length"),
    (["--baseline=x"], "loss=a; loss=b"),
  ],
)
def test_mistakes_are_said_in_a_sentence(options, message, tmp_path, capsys):
  directory = sweep(tmp_path / "sweep", {"a": {0: 1.0}, "b": {0: 2.0}})
  assert main.main([str(directory), *options]) == 1
  assert message in capsys.readouterr().err
  assert main.main([str(tmp_path)]) == 1
  assert "no sweep.json" in capsys.readouterr().err
