"""Rank metrics against SciPy and against their definitions averaged over every order of ties."""

import itertools
import math

from draws import lists, reordered, wider
import jax
import numpy as np
import pytest
from scipy import stats

from larpo_jax import masked
from larpo_jax.evaluators import preference

rank_metrics = jax.jit(preference.rank_metrics)
ranking = jax.jit(preference.ranking)
METRICS = ["accuracy", "ndcg", "mrr", "kendall_tau"]


def orders(score):
  """Every ranking, best first, that sorting by score may give."""
  return [
    p
    for p in itertools.permutations(range(len(score)))
    if all(score[i] >= score[j] for i, j in itertools.pairwise(p))
  ]


def dcg(gain, order):
  return sum(gain[i] / math.log2(2 + place) for place, i in enumerate(order))


def longhand(score, label):
  pairs = [(i, j) for i in range(len(label)) for j in range(len(label)) if label[i] > label[j]]
  if not pairs:
    return dict.fromkeys(METRICS, 0.0)
  gain, best = [x - min(label) for x in label], max(label)
  tau = stats.kendalltau(score, label).statistic
  ranked = orders(score)
  first = [next(k + 1 for k, i in enumerate(order) if label[i] == best) for order in ranked]
  return {
    "accuracy": np.mean([(np.sign(score[i] - score[j]) + 1) / 2 for i, j in pairs]),
    "ndcg": np.mean([dcg(gain, order) for order in ranked]) / dcg(gain, orders(gain)[0]),
    "mrr": np.mean([1 / place for place in first]),
    "kendall_tau": 0.0 if math.isnan(tau) else tau,
  }


@pytest.mark.parametrize("values", [1, 2, 3, 100])
def test_definitions(values, seed):
  rng = np.random.default_rng(seed)
  score, label = rng.integers(0, values, (60, 5)), rng.integers(-2, 2, (60, 5))
  valid = np.arange(5) < rng.integers(0, 6, (60, 1))
  found = rank_metrics(np.float32(score), np.float32(label), valid)
  for b in range(60):
    expected = longhand(score[b][valid[b]].tolist(), label[b][valid[b]].tolist())
    for name in METRICS:
      assert found[name][b] == pytest.approx(expected[name], abs=1e-5), (name, score[b], label[b])


def test_kendall_tau_is_scipys_on_long_lists(seed):
  rng = np.random.default_rng(seed)
  score, label = rng.normal(size=(20, 30)), rng.integers(0, 10, (20, 30))
  found = rank_metrics(np.float32(score), np.float32(label), np.ones((20, 30), bool))
  expected = [stats.kendalltau(s, y).statistic for s, y in zip(np.float32(score), label)]
  np.testing.assert_allclose(found["kendall_tau"], expected, 1e-5, 1e-6)


def test_perfect_and_reversed(seed):
  label = np.float32(np.random.default_rng(seed).permuted(np.tile(np.arange(4), (9, 1)), axis=1))
  valid = np.ones(label.shape, bool)
  perfect = rank_metrics(3 * label + 1, label, valid)
  reverse = rank_metrics(-label, label, valid)
  for name in METRICS:
    np.testing.assert_allclose(perfect[name], np.ones(9), 1e-6)
    assert (reverse[name] < 0.7).all()
  np.testing.assert_allclose(reverse["kendall_tau"], -np.ones(9), 1e-6)
  np.testing.assert_allclose(reverse["mrr"], np.full(9, 0.25), 1e-6)


def test_ranking_is_of_the_implicit_reward_and_of_the_mean_log_prob(seed):
  policy, reference, batch = lists(seed)
  found = ranking(policy, reference, batch)
  scores = {"": policy.sequence - reference.sequence, "mean_logp/": policy.mean}
  for prefix, score in scores.items():
    expected = rank_metrics(score, batch.label, batch.valid)
    for name in METRICS:
      np.testing.assert_allclose(found[prefix + name], expected[name], 1e-6, 1e-6)
  wins = np.asarray(masked.pairs(batch.label, batch.valid))
  np.testing.assert_array_equal(found["ordered"], wins.any((1, 2)))
  assert all(x.shape == (8,) and x.dtype == np.float32 for x in found.values())


def test_a_reward_model_ranks_by_its_own_scores(seed):
  policy, _, batch = lists(seed)
  found = jax.jit(preference.scored)(policy, batch)
  expected = rank_metrics(policy.sequence, batch.label, batch.valid)
  for name in METRICS:
    np.testing.assert_array_equal(found[f"score/{name}"], expected[name])
  wins = np.asarray(masked.pairs(batch.label, batch.valid))
  np.testing.assert_array_equal(found["ordered"], wins.any((1, 2)))


def test_an_untrained_policy_is_at_chance_but_has_a_baseline(seed):
  policy, _, batch = lists(seed, ragged=False, tied=False)
  found = ranking(policy, policy, batch)
  np.testing.assert_allclose(found["accuracy"], np.full(8, 0.5))
  np.testing.assert_allclose(found["kendall_tau"], np.zeros(8))
  np.testing.assert_allclose(found["mrr"], np.full(8, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4), 1e-6)
  assert len(np.unique(found["mean_logp/accuracy"])) > 1


def test_padding_and_order_change_nothing(seed):
  policy, reference, batch = lists(seed)
  found = ranking(policy, reference, batch)
  garbage = batch.replace(label=np.where(batch.valid, batch.label, np.nan).astype(np.float32))
  wide = wider((policy, reference, garbage))
  back = reordered(wide, np.tile(np.arange(6)[::-1], (8, 1)))
  for arguments in (wide, back):
    for name, x in ranking(*arguments).items():
      np.testing.assert_allclose(x, found[name], 1e-6, 1e-6, err_msg=name)


def test_scale_and_shift_of_labels_change_nothing(seed):
  policy, reference, batch = lists(seed)
  found = ranking(policy, reference, batch)
  moved = ranking(policy, reference, batch.replace(label=3 * batch.label - 7))
  for name in found:
    np.testing.assert_allclose(moved[name], found[name], 1e-5, 1e-6, err_msg=name)


def test_empty_and_level_lists_are_zero_and_say_so(seed):
  policy, reference, batch = lists(seed)
  level = batch.replace(label=np.full_like(batch.label, 2.0))
  empty = batch.replace(valid=np.zeros_like(batch.valid))
  for unordered in (level, empty):
    assert not any(np.any(x) for x in ranking(policy, reference, unordered).values())
