"""RSO's filter: what it accepts, how often, and what is paired of it."""

import collections
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from larpo_jax.data import lists


def paper(response_candidates, response_rewards, beta, num_samples, draws):
  """Algorithm 1 of RSO, https://arxiv.org/abs/2309.06657, as it is printed; draws gives its u."""
  candidates = dict(zip(response_candidates, response_rewards))
  accepted = []
  while len(accepted) < num_samples:
    max_reward = max(candidates.values())
    to_remove = []
    for c, r in candidates.items():
      u = next(draws)
      if u >= np.exp((r - max_reward) / beta):
        continue
      accepted.append(c)
      to_remove.append(c)
      if len(accepted) == num_samples:
        break
    for c in to_remove:
      candidates.pop(c)
  return accepted


def test_what_is_accepted_is_what_the_paper_accepts(seed):
  rng = np.random.default_rng(seed)
  sizes = set()
  for number in range(300):
    size = int(rng.integers(2, 20))
    keep, beta = int(rng.integers(1, size + 1)), float(rng.uniform(0.05, 2.0))
    scores = rng.normal(size=size).round(1)
    ours, theirs = (np.random.default_rng([seed, number]) for _ in range(2))
    order = theirs.permutation(np.argsort(-scores, kind="stable"))
    wanted = paper(order, scores[order], beta, keep, iter(theirs.random, None))
    found = lists._accepted(scores, ours, beta, keep)
    assert found == wanted
    assert len(found) == keep
    sizes.add(keep)
  assert len(sizes) > 10
  assert sorted(lists._accepted(scores, rng, 0.5, size + 3)) == list(range(size)), "no more"


def test_accepted_candidates_follow_the_tilted_distribution(seed):
  """Of many candidates the first accepted is one of score s as often as p(s) exp(s / beta) says."""
  beta, values, copies = 0.7, np.array([0.0, 0.4, 1.0, 1.5]), np.array([240, 120, 60, 80])
  scores = np.repeat(values, copies)
  firsts = [lists._accepted(scores, np.random.default_rng([seed, n]), beta, 1) for n in range(4000)]
  observed = np.array([np.sum(scores[np.concatenate(firsts)] == value) for value in values])
  tilted = copies * np.exp(values / beta)
  wanted = tilted / tilted.sum() * observed.sum()
  assert stats.chisquare(observed, wanted).pvalue > 1e-6
  for wrong in (copies, copies * np.exp(values), copies * np.exp(2 * values / beta)):
    assert stats.chisquare(observed, wrong / wrong.sum() * observed.sum()).pvalue < 1e-6


def exactly(scores, beta, keep):
  """The probability of each set of `keep` that is accepted, over all orders and all draws."""
  chances = collections.Counter()

  def go(pool, place, most, accepted, chance):
    if len(accepted) == keep:
      chances[frozenset(accepted)] += chance
    elif place == len(pool):
      left = tuple(i for i in pool if i not in accepted)
      go(left, 0, max(scores[i] for i in left), accepted, chance)
    else:
      share = math.exp((scores[pool[place]] - most) / beta)
      go(pool, place + 1, most, (*accepted, pool[place]), chance * share)
      if share < 1:
        go(pool, place + 1, most, accepted, chance * (1 - share))

  for order in itertools.permutations(range(len(scores))):
    go(order, 0, max(scores), (), 1 / math.factorial(len(scores)))
  return chances


def test_two_of_four_are_accepted_as_often_as_all_cases_counted_say(seed):
  scores, beta = np.array([0.0, 0.3, 0.9, 1.0]), 0.6
  chances = exactly(scores, beta, 2)
  assert sum(chances.values()) == pytest.approx(1)
  assert len(chances) == 6
  count = collections.Counter(
    frozenset(lists._accepted(scores, np.random.default_rng([seed, n]), beta, 2))
    for n in range(5000)
  )
  sets = list(chances)
  wanted = [5000 * chances[each] for each in sets]
  assert stats.chisquare([count[each] for each in sets], wanted).pvalue > 1e-6


def test_a_cold_filter_keeps_the_best_and_a_hot_one_any(seed):
  scores = np.random.default_rng(seed).permutation(16) / 16
  for number in range(50):
    rng = np.random.default_rng([seed, number])
    assert set(lists._accepted(scores, rng, 1e-4, 4)) == set(np.argsort(-scores)[:4])
  rngs = (np.random.default_rng([seed, n]) for n in range(3000))
  count = collections.Counter(
    place for rng in rngs for place in lists._accepted(scores, rng, 1e6, 4)
  )
  assert stats.chisquare([count[place] for place in range(16)]).pvalue > 1e-6


@pytest.mark.parametrize("pairing", ["first_round", "tournament", "whole"])
def test_rso_pairs_what_it_accepts(pairing, seed):
  scores = np.random.default_rng(seed).permutation(20) / 20
  rng = np.random.default_rng(seed)
  found = lists.rso(scores, rng, beta=0.3, keep=6, pairing=pairing)
  accepted = lists._accepted(scores, np.random.default_rng(seed), 0.3, 6)
  assert {place for places, _ in found for place in places} == set(accepted)
  assert len(found) == {"first_round": 3, "tournament": 5, "whole": 1}[pairing]


def test_at_a_beta_of_zero_the_filter_is_the_best_and_ties_are_drawn(seed):
  scores, seen = np.array([0.5, 1.0, 0.5, 0.0, 0.5]), set()
  for number in range(60):
    found = lists._accepted(scores, np.random.default_rng([seed, number]), 0.0, 2)
    assert scores[found].tolist() in ([1.0, 0.5], [0.5, 1.0])
    seen.update(found)
  assert seen == {0, 1, 2, 4}
  assert sorted(lists._accepted(scores, np.random.default_rng(seed), 0.0, 9)) == list(range(5))
