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


@pytest.mark.parametrize(
  ("name", "arguments", "said"),
  [
    ("rso", dict(beta=-0.1), "beta=-0.1 must be at least 0"),
    ("rso", dict(beta=math.nan), "beta=nan must be at least 0"),
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


def test_lists_of_a_narrow_gap_are_left_out():
  texts, scores = ["a", "b", "c"], [0.9, 0.5, 0.4]
  every = grouped("lists.all_pairs", texts, scores, False)
  assert len(every) == 3
  wide = grouping.wide(every, scores, 0.4)
  assert [set(each.places) for each in wide] == [{0, 1}, {0, 2}]
  assert grouping.wide(every, scores, 0.6) == []
  assert grouping.wide(every, scores, 0.0) == every


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
