"""Novelty: counts against a tally by hand, the coin flips against counts, and states of a model."""

import collections

import numpy as np
import pytest

from larpo_jax.data import novelty
from larpo_jax.data.candidates import Tokens

ROUNDS, PROMPTS, SAMPLES = 3, 5, 6


def row(prompt, responses):
  ids = [np.asarray(each, np.int32) for each in responses]
  return Tokens(np.asarray(prompt, np.int32), ids, [x > -1 for x in ids], [0.0] * len(ids))


def seen(rounds, count=SAMPLES, encode=None, seed=0):
  return novelty.Sampled(rounds, count, encode, seed)


@pytest.fixture
def rounds(seed):
  """Rounds of few prompts with few responses of one or two tokens, and a gold one beside them."""
  rng = np.random.default_rng(seed)
  draw = lambda: list(rng.integers(0, 2, rng.integers(1, 3)))  # noqa: E731
  return [
    [row([place // 2], [*(draw() for _ in range(SAMPLES)), [7, place]]) for place in range(PROMPTS)]
    for _ in range(ROUNDS)
  ]


def pairs(rounds):
  """Every (prompt, response) as text, in the shape of the rows."""
  text = lambda prompt, ids: f"{prompt.tolist()} {ids.tolist()}"  # noqa: E731
  return [[[text(r.prompt, ids) for ids in r.responses] for r in rows] for rows in rounds]


def flat(nested):
  return [value for rows in nested for row in rows for value in row]


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_counts_are_those_of_all_samples_up_to_now(exponent, rounds):
  for number in range(ROUNDS):
    known = rounds[: number + 1]
    texts = pairs(known)
    tally = collections.Counter(t for rows in texts for row in rows for t in row[:SAMPLES])
    found = novelty.counts(seen(known), exponent=exponent)
    wanted = [max(tally[text], 1) ** -exponent for text in flat(texts)]
    assert flat(found) == pytest.approx(wanted)
    assert [[len(row) for row in rows] for rows in found] == [[SAMPLES + 1] * PROMPTS] * len(known)
  assert max(tally.values()) > ROUNDS, "something came often"
  assert min(flat(found)) < 1 == max(flat(found))


def test_the_end_of_a_prompt_is_no_beginning_of_a_response():
  apart = [row([1, 2], [[3]]), row([1], [[2, 3]]), row([1, 2], [[3]])]
  assert flat(novelty.counts(seen([apart], count=1), exponent=1.0)) == [0.5, 1.0, 0.5]


def test_the_first_is_explored_wherever_it_stands(rounds):
  found, texts = novelty.first(seen(rounds)), pairs(rounds)
  chosen = {line[0] for line in texts[-1]}
  assert flat(found) == [float(text in chosen) for text in flat(texts)]
  assert all(line[0] == 1 for line in found[-1])
  # Counts of these alone: the same, but where it is not explored.
  some, all_ = (novelty.counts(seen(rounds), explored=who) for who in ("first", "all"))
  assert flat(some) == [mark * value for mark, value in zip(flat(found), flat(all_))]


def many(seed, often, width=24):
  """A round in which response n came often[n] times, its state [D], and a lookup of states."""
  rng = np.random.default_rng(seed)
  state = rng.normal(size=(len(often), width)).astype(np.float32)
  asked = rng.permutation(np.repeat(np.arange(len(often)), often))
  known = [[row([0], [[n]]) for n in asked]]
  return known, asked, lambda number: 3 + state[asked][:, None]  # all states share a large part


LEARNT = dict(hidden=64, learning_rate=1e-2, epochs=60, dropout=0.0)


def test_the_coin_flips_stand_for_counts(seed):
  often = np.repeat([1, 2, 4, 8, 16, 32], 4)
  known, asked, encode = many(seed, often)
  found = np.asarray(flat(novelty.coin_flips(seen(known, 1, encode, seed), flips=64, **LEARNT)))
  counted = np.asarray(flat(novelty.counts(seen(known, 1))))
  of_each = lambda values: np.array([values[asked == n].mean() for n in range(len(often))])  # noqa: E731
  assert np.corrcoef(of_each(found), of_each(counted))[0, 1] > 0.9
  by_count = of_each(found).reshape(6, 4).mean(axis=1)
  assert np.all(np.diff(by_count) < 0), by_count
  # Not only in order: what came 32 times is about 1 / sqrt(32) as new as what came once.
  np.testing.assert_allclose(by_count * np.sqrt([1, 2, 4, 8, 16, 32]), 1, atol=0.5)


def test_the_coin_flips_depend_on_the_seed_and_the_rounds_alone(seed):
  first, _, of_first = many(seed, [1, 3, 9])
  second, _, of_second = many(seed + 1, [5, 2, 6])
  encode = lambda number: (of_first, of_second)[number](number)  # noqa: E731
  both = seen([*first, *second], 1, encode, seed)
  small = dict(epochs=2, flips=4, hidden=4)
  found = flat(novelty.coin_flips(both, **small))
  assert flat(novelty.coin_flips(both, **small)) == found
  assert flat(novelty.coin_flips(both._replace(seed=seed + 1), **small)) != found
  anew = flat(novelty.coin_flips(both, reset=True, **small))
  assert anew != found, "what the first round has taught is forgotten"
  only = seen(first, 1, of_first, seed)
  assert flat(novelty.coin_flips(only, reset=True, **small)) == flat(
    novelty.coin_flips(only, **small)
  )


def test_the_coin_flips_are_learnt_of_samples_alone(seed):
  rng = np.random.default_rng(seed)
  state = rng.normal(size=(8, 3, 6)).astype(np.float32)
  known = [[row([n], [[0], [1], [2]]) for n in range(8)]]
  how = dict(epochs=2, flips=4, hidden=4)
  bonus = lambda x: np.asarray(novelty.coin_flips(seen(known, 2, lambda n: x, seed), **how))[0]  # noqa: E731
  other = state + np.float32([0, 0, 1])[None, :, None]  # the third of each, which is gold
  np.testing.assert_array_equal(bonus(state)[:, :2], bonus(other)[:, :2])
  assert (bonus(state)[:, 2] != bonus(other)[:, 2]).any()


@pytest.mark.parametrize(
  ("spec", "named"),
  [
    (dict(exponent=-0.5), "exponent=-0.5 must be at least 0"),
    (dict(explored="some"), "explored='some' is not one of all, first"),
  ],
)
def test_wrong_arguments_are_named(spec, named):
  for function in (novelty.counts, novelty.coin_flips):
    with pytest.raises(ValueError, match=named.split(" ")[0]):
      function(seen([]), **spec)
  with pytest.raises(ValueError, match="flips=0 must be at least 1"):
    novelty.coin_flips(seen([]), flips=0)
