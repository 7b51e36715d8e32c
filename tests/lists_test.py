"""Strategies that build lists of scored candidates: what holds for each, and what each one is."""

import collections
import inspect
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from larpo_jax import lookup
from larpo_jax.data import grouping, lists

STRATEGIES = {f"lists.{name}": function for name, function in lookup.functions(lists).items()}
RANDOM = {"lists.best_random", "lists.first_round", "lists.tournament", "lists.rso"}

every = pytest.mark.parametrize("name", STRATEGIES)


def drawn(seed, count=200):
  """Scores of lists of one to nine candidates, most with ties, and a seed for each."""
  rng = np.random.default_rng(seed)
  for number in range(count):
    size, levels = rng.integers(1, 10), rng.integers(1, 12)
    yield rng.integers(0, levels, size) / 8 - 0.5, number


def built(name, scores, seed, **arguments):
  return STRATEGIES[name](np.asarray(scores, float), np.random.default_rng(seed), **arguments)


def in_scores(scores, found):
  """Lists as what they are made of: the score and the label of each response."""
  return sorted(
    sorted(zip(np.asarray(scores, float)[places].tolist(), labels)) for places, labels in found
  )


def test_all_are_found_and_documented():
  assert len(STRATEGIES) == 12
  for name, function in STRATEGIES.items():
    assert inspect.getdoc(function)
    assert grouping.resolve(dict(name=name)) is function
  with pytest.raises(ValueError, match=r"did you mean 'lists.best_worst'"):
    grouping.resolve(dict(name="lists.best_wurst"))


@every
def test_lists_are_of_candidates_and_prefer_by_score_alone(name, seed):
  for scores, number in drawn(seed):
    for places, labels in built(name, scores, number):
      assert len(places) == len(labels) == len(set(places)) >= 2
      assert all(0 <= place < len(scores) for place in places)
      assert len(set(labels)) > 1
      for (i, a), (j, b) in itertools.permutations(zip(places, labels), 2):
        assert not a > b or scores[i] > scores[j], "no tie is a preference"
      if name != "lists.whole":
        assert labels[0] == max(labels)


@every
def test_a_prompt_whose_scores_are_equal_gives_no_list(name):
  for size in range(1, 6):
    assert built(name, [0.25] * size, 0) == []


@every
def test_of_two_candidates_there_is_one_pair(name, seed):
  for scores in ([0.0, 1.0], [1.0, 0.0], [-2.0, -1.5]):
    ((places, labels),) = built(name, scores, seed)
    ranked = [place for _, place in sorted(zip(labels, places), reverse=True)]
    assert ranked == [int(np.argmax(scores)), int(np.argmin(scores))]


@every
def test_the_order_in_which_candidates_come_does_not_matter(name, seed):
  rng = np.random.default_rng(seed)
  for scores, number in drawn(seed + 1):
    found = in_scores(scores, built(name, scores, number))
    order = rng.permutation(len(scores))
    assert in_scores(scores[order], built(name, scores[order], number)) == found


@every
def test_it_draws_from_its_generator_alone(name, seed):
  scores = np.random.default_rng(seed).permutation(9) / 9
  found = {repr(built(name, scores, number)) for number in range(40) for _ in range(2)}
  assert (len(found) > 1) == (name in RANDOM)
  assert len(found) <= 40


@every
def test_the_longest_list_is_as_wide_as_is_said(name, seed):
  for count in (2, 3, 8, 17):
    rounds = dict(candidates=count, gold=False, negatives="sampled", lists=dict(name=name))
    rounds |= dict(memory="none", prompt_split="disjoint", greedy=False, human=0, prefer=())
    rounds |= dict(teacher=None, steps=None)
    scores = np.random.default_rng(seed).permutation(count).astype(float)
    assert grouping.widest(rounds, 3) == max(len(row.places) for row in built(name, scores, seed))


#          place:  0    1    2    3    4
SCORES = np.array([0.2, 0.9, 0.5, 0.0, 0.9])


@pytest.mark.parametrize(
  ("name", "arguments", "wanted"),
  [
    ("whole", {}, [([0, 1, 2, 3, 4], [0.2, 0.9, 0.5, 0.0, 0.9])]),
    ("best_worst", {}, [([1, 3], [0.9, 0.0])]),
    ("best_second", {}, [([1, 2], [0.9, 0.5])]),
    ("best_each", {}, [([1, 3], [0.9, 0.0]), ([1, 0], [0.9, 0.2]), ([1, 2], [0.9, 0.5])]),
    ("best_all", {}, [([1, 2, 0, 3], [1.0, 0.0, 0.0, 0.0])]),
    ("top_bottom", {}, [([1, 0, 3], [1.0, 0.0, 0.0]), ([4, 0, 3], [1.0, 0.0, 0.0])]),
    ("top_bottom", dict(positives=1, negatives=4), [([1, 2, 0, 3], [1.0, 0.0, 0.0, 0.0])]),
    (
      "top_bottom",
      dict(positives=4, negatives=2),
      [([i, 0, 3], [1.0, 0.0, 0.0]) for i in (1, 4, 2)] + [([0, 3], [1.0, 0.0])],
    ),
    ("matched_ranks", {}, [([1, 3], [0.9, 0.0]), ([4, 0], [0.9, 0.2])]),
    ("matched_ranks", dict(pairs=1), [([1, 3], [0.9, 0.0])]),
    ("matched_ranks", dict(pairs=5), [([1, 3], [0.9, 0.0]), ([4, 0], [0.9, 0.2])]),
    (
      "all_pairs",
      {},
      [([1, i], [0.9, SCORES[i]]) for i in (2, 0, 3)]
      + [([4, i], [0.9, SCORES[i]]) for i in (2, 0, 3)]
      + [([2, 0], [0.5, 0.2]), ([2, 3], [0.5, 0.0]), ([0, 3], [0.2, 0.0])],
    ),
  ],
)
def test_lists_of_five_candidates_by_hand(name, arguments, wanted):
  assert built(f"lists.{name}", SCORES, 0, **arguments) == wanted


def test_the_drawn_loser_is_any_that_is_worse(seed):
  count = collections.Counter(
    built("lists.best_random", SCORES, [seed, n])[0].places[1] for n in range(3000)
  )
  assert set(count) == {0, 2, 3}
  assert stats.chisquare(list(count.values())).pvalue > 1e-6


def test_a_first_round_is_how_a_tournament_begins(seed):
  for size in range(2, 12):
    scores = np.random.default_rng([seed, size]).permutation(size) / size
    first, all_rounds = (built(f"lists.{n}", scores, seed) for n in ("first_round", "tournament"))
    assert all_rounds[: len(first)] == first
    assert len(first) == size // 2
    assert len(all_rounds) == size - 1, "everyone but the winner loses once"
    losers = [places[1] for places, _ in all_rounds]
    assert sorted(losers) == sorted(set(range(size)) - {int(np.argmax(scores))})
    used = [place for places, _ in first for place in places]
    assert len(used) == len(set(used))


def test_any_two_may_meet_in_a_first_round(seed):
  scores = np.arange(4.0)
  count = collections.Counter(
    tuple(places)
    for n in range(3000)
    for places, _ in built("lists.first_round", scores, [seed, n])
  )
  assert len(count) == 6
  assert stats.chisquare(list(count.values())).pvalue > 1e-6


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
  found = built("lists.rso", scores, seed, beta=0.3, keep=6, pairing=pairing)
  accepted = lists._accepted(scores, np.random.default_rng(seed), 0.3, 6)
  assert {place for places, _ in found for place in places} == set(accepted)
  assert len(found) == {"first_round": 3, "tournament": 5, "whole": 1}[pairing]


@pytest.mark.parametrize(
  ("name", "arguments", "said"),
  [
    ("rso", dict(keep=0), "keep=0 must be at least 1"),
    ("rso", dict(pairing="all"), "pairing='all' is not one of first_round, tournament, whole"),
    ("top_bottom", dict(negatives=0), "negatives=0 must be at least 1"),
    ("top_bottom", dict(positives=-1), "positives=-1 must be at least 1"),
    ("matched_ranks", dict(pairs=0), "pairs=0 must be at least 1"),
  ],
)
def test_numbers_out_of_range_are_refused(name, arguments, said):
  with pytest.raises(ValueError, match=said):
    built(f"lists.{name}", SCORES, 0, **arguments)


def grouped(name, texts, scores, dedupe):
  rng = np.random.default_rng(0)
  return grouping.group(STRATEGIES[name], texts, scores, rng, dedupe=dedupe)


def test_a_text_that_comes_twice_counts_once():
  texts, scores = ["b", "a", "b", "c", "a"], [0.5, 0.1, 0.5, 0.9, 0.1]
  assert grouped("lists.whole", texts, scores, False) == [([0, 1, 2, 3, 4], scores)]
  assert grouped("lists.whole", texts, scores, True) == [([0, 1, 3], [0.5, 0.1, 0.9])]
  assert grouped("lists.best_each", texts, scores, True) == [
    ([3, 1], [0.9, 0.1]),
    ([3, 0], [0.9, 0.5]),
  ]
  assert grouped("lists.whole", ["a", "a"], [0.1, 0.7], True) == [], "the first is kept"


@every
def test_dedupe_changes_nothing_where_all_texts_differ(name, seed):
  for scores, number in drawn(seed, 50):
    texts = [str(place) for place in range(len(scores))]
    found = [
      grouping.group(STRATEGIES[name], texts, scores, np.random.default_rng(number), dedupe=dedupe)
      for dedupe in (False, True)
    ]
    assert found[0] == found[1] == built(name, scores, number)


@pytest.mark.parametrize(
  ("memory", "wanted"), [("none", [[0], [1], [2]]), ("previous", [[0], [0, 1], [1, 2]])]
)
def test_rounds_that_are_remembered(memory, wanted):
  found = [list(grouping.remembered(dict(memory=memory), number)) for number in range(3)]
  assert found == wanted
  assert list(grouping.remembered(dict(memory="all"), 4)) == [0, 1, 2, 3, 4]
