"""The probe of surfaces: chance where there is none, 1 where one token gives the answer away."""

import numpy as np
import pytest

from larpo_jax.data.separability import separability


def drawn(seed, pairs=200, tokens=12):
  """Chosen and rejected responses from one distribution."""
  rng = np.random.default_rng(seed)
  some = lambda: [rng.integers(1, tokens, rng.integers(1, 9)) for _ in range(pairs)]  # noqa: E731
  return some(), some()


def test_responses_of_one_kind_are_told_apart_by_chance(seed):
  assert abs(separability(*drawn(seed)) - 0.5) < 0.2  # 8 standard errors


def test_what_is_learnt_by_heart_does_not_count(seed):
  assert separability(*drawn(seed, pairs=40, tokens=250)) < 0.85  # 6 standard errors above chance


def test_a_marker_gives_the_chosen_away(seed):
  chosen, rejected = drawn(seed)
  marked = [np.append(ids, 0) for ids in chosen]
  assert separability(marked, rejected) == 1
  half = [np.append(ids, 0) if n % 2 else ids for n, ids in enumerate(chosen)]
  mixed = [chosen[n] if n % 4 < 2 else ids for n, ids in enumerate(marked)]
  assert 0.55 < separability(mixed, rejected) < 0.95
  assert separability(half, rejected) < separability(marked, rejected)


def test_a_name_for_a_token_and_the_order_in_a_response_do_not_matter(seed):
  chosen, rejected = drawn(seed)
  chosen = [np.append(ids, [1] * (n % 3)) for n, ids in enumerate(chosen)]
  found = separability(chosen, rejected)
  other = lambda ids: 7000 * ids[::-1]  # noqa: E731
  assert separability([*map(other, chosen)], [*map(other, rejected)]) == pytest.approx(found)


def test_both_sides_count_alike(seed):
  chosen, rejected = drawn(seed, pairs=60)
  assert separability(rejected, chosen) == pytest.approx(separability(chosen, rejected), abs=0.05)


def test_too_few_pairs_say_nothing():
  ids = np.arange(3)
  assert separability([], []) == separability([ids], [ids + 9]) == 0.5
  assert separability([ids, ids], [ids, ids]) == 0.5
  assert separability([ids, ids], [ids + 9, ids + 9]) == 1
