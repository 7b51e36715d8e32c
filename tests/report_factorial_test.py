"""Main effects and interactions against t tests, longhand analysis of variance, and simulation."""

import itertools
import json
import pathlib

import numpy as np
import pytest
from scipy import stats
import synthetic_sweep

from larpo_jax.report import __main__ as main
from larpo_jax.report import factorial, statistics
from larpo_jax.report.collect import Run

SWEEPS = 200


def runs(table, names=("loss", "beta")):
  """table: [seeds, values of each axis]."""
  found = []
  for seed, *place in np.ndindex(table.shape):
    varies = dict(zip(names, place))
    after = {"reward": table[(seed, *place)]}
    found.append(Run(str(varies), seed, varies, {}, after, {}, pathlib.Path()))
  return found


def find(table, **options):
  return factorial.factorial(runs(table, **options), "reward")


def longhand_p(table):
  """An interaction of two axes from orthonormal contrasts, with Greenhouse and Geisser's factor."""
  n, a, b = table.shape
  (left, right) = (stats.ortho_group(size).rvs(random_state=0) if size > 1 else None
                   for size in (a - 1, b - 1))  # fmt: skip
  bases = []
  for size, turn in ((a, left), (b, right)):
    helmert = np.linalg.qr(np.column_stack([np.ones(size), np.eye(size)[:, 1:]]))[0][:, 1:]
    bases.append(helmert @ turn if turn is not None else helmert)
  scores = np.einsum("nab,ax,by->nxy", table, *bases).reshape(n, -1)
  covariance = np.atleast_2d(np.cov(scores.T))
  freedom = scores.shape[1]
  values = np.linalg.eigvalsh(covariance)
  factor = values.sum() ** 2 / (freedom * (values**2).sum())
  ratio = n * (scores.mean(0) ** 2).sum() / np.trace(covariance)
  return stats.f.sf(ratio, factor * freedom, factor * freedom * (n - 1))


def test_at_two_values_it_is_the_paired_t_test(seed):
  table = np.random.default_rng(seed).normal(size=(6, 2, 2))
  rows = table.mean(2)
  crossed = table[:, 0, 0] - table[:, 0, 1] - table[:, 1, 0] + table[:, 1, 1]
  main = factorial.p_of(factorial.effects_of(table, [0]))
  assert main == pytest.approx(stats.ttest_rel(*rows.T).pvalue)
  both = factorial.p_of(factorial.effects_of(table, [0, 1]))
  assert both == pytest.approx(stats.ttest_1samp(crossed, 0).pvalue)


def test_at_more_values_it_is_the_analysis_of_variance(seed):
  rng = np.random.default_rng(seed)
  table = rng.normal(size=(5, 3, 4)) + rng.normal(size=(5, 1, 1))
  assert factorial.p_of(factorial.effects_of(table, [0, 1])) == pytest.approx(longhand_p(table))


def test_the_terms_of_two_axes_add_up(seed):
  rng = np.random.default_rng(seed)
  table = rng.normal(size=(4, 3, 2))
  found = find(table)
  assert [term.axes for term in found.terms] == [("loss",), ("beta",), ("loss", "beta")]
  assert sum(term.share for term in found.terms) == pytest.approx(1)
  ps = [factorial.p_of(factorial.effects_of(table, places)) for places in ([0], [1], [0, 1])]
  assert [term.p for term in found.terms] == pytest.approx(statistics.holm(ps))
  means = table.mean((0, 2))
  levels = found.terms[0].levels
  assert [level.mean for level in levels] == pytest.approx(list(means))
  assert [level.effect for level in levels] == pytest.approx(list(means - means.mean()))
  shifted = find(table + 100 * rng.normal(size=(4, 1, 1)))  # what a seed adds to all arms
  assert [term.p for term in shifted.terms] == pytest.approx([term.p for term in found.terms])


def test_a_planted_effect_is_put_on_its_axis(seed):
  rng = np.random.default_rng(seed)
  table = 0.01 * rng.normal(size=(5, 2, 3, 2))
  table += np.array([0.0, 1.0])[:, None, None]
  table += np.array([[1.0, -1.0], [0.0, 0.0], [-1.0, 1.0]])  # the second with the third
  found = find(table, names=("loss", "beta", "rate"))
  shown = {term.axes for term in found.terms if term.share > 0.1}
  assert shown == {("loss",), ("beta", "rate")}
  assert all(term.p < 0.05 for term in found.terms if term.axes in shown)
  assert found.terms[0].size == pytest.approx(0.5, abs=0.05)


def test_no_more_false_claims_than_there_may_be(seed):
  rng = np.random.default_rng(seed)
  tables = rng.normal(size=(SWEEPS, 5, 3, 2)) + 3 * rng.normal(size=(SWEEPS, 5, 1, 1))
  told = [min(term.p for term in find(table).terms) < 0.05 for table in tables]
  assert np.mean(told) <= stats.binom.ppf(0.9999, SWEEPS, 0.05) / SWEEPS


def test_what_is_not_crossed_is_said(seed):
  found = runs(np.random.default_rng(seed).normal(size=(2, 3, 2)))
  whole = factorial.factorial([run for run in found if run != found[0]], "reward")
  assert whole.seeds == 1  # the other seed lacks an arm
  assert all(np.isnan(term.p) for term in whole.terms)
  lost = [run for run in found if run.varies != {"loss": 0, "beta": 1}]
  why = factorial.factorial(lost, "reward").why_not
  assert "no seed has all 6 combinations of loss, beta: one has 5" in why
  partial = [run._replace(varies={"loss": run.varies["loss"]}) if run.varies["loss"] else run
             for run in found]  # fmt: skip
  assert factorial.factorial(partial, "reward").why_not == "some arms have no beta"


def test_one_axis_is_no_factorial(seed):
  table = np.random.default_rng(seed).normal(size=(3, 4))
  assert find(table, names=("loss",)) is None
  same = [run._replace(varies={**run.varies, "rate": 1}) for run in runs(table, names=("loss",))]
  assert factorial.factorial(same, "reward") is None


def test_certain_differences_are_certain():
  table = np.zeros((3, 2, 2))
  table[:, 1] = 1.0
  found = find(table)
  assert [term.p for term in found.terms] == [0.0, 1.0, 1.0]
  assert list(itertools.chain(*([level.effect for level in t.levels] for t in found.terms))) == [
    *(-0.5, 0.5),
    *(0.0, 0.0),
  ]


def test_a_sequence_is_one_value_of_an_axis(tmp_path):
  """As of rounds.prefer: a crossed sweep of sequences has its plots and its table."""
  index = []
  for number, (prefer, styled) in enumerate(itertools.product((["gold", "self"], []), ([], ["x"]))):
    for seed in range(3):
      name = f"{number}-{seed}"
      run = tmp_path / name / "results"
      run.mkdir(parents=True)
      after = {"gold/reward": number + 0.1 * seed**2 + 0.01 * number**2 * seed}
      (run / "summary.json").write_text(json.dumps({"before": {"gold/reward": 0}, "after": after}))
      varies = dict(prefer=prefer, styled=styled)
      index.append(dict(name=name, point=number, seed=seed, varies=varies))
  (tmp_path / "sweep.json").write_text(json.dumps(index))
  assert main.main([str(tmp_path)]) == 0
  text = (tmp_path / "report.md").read_text()
  assert "`prefer=none, styled=x`" in text
  assert "| gold+self | none |" in text


def test_axes_that_no_arm_has_both_of_make_no_map(tmp_path, seed):
  """As a loss and a wrapper around one, each with a beta of its own."""
  arms = [({"loss": "dpo", "beta": beta}, 0.1, 0.2) for beta in (0.1, 0.3)]
  arms += [({"loss": "robust", "kernel.beta": beta}, 0.1, 0.2) for beta in (0.1, 0.3)]
  rng = np.random.default_rng(seed)
  synthetic_sweep.write(tmp_path / "s", arms, seeds=2, prompts=6, rounds=1, rng=rng)
  _, parts = main.write(tmp_path / "s", samples=2)
  names = {plot.name for part in parts for plot in part.plots or ()}
  assert {"arms", "axis_0"} <= names
  assert not [name for name in names if name.startswith("map_")]
