"""One prompt's scored candidates -> the lists to train on.

Every public function is a strategy that the config may name, as in `rounds.lists =
dict(name="lists.best_worst")`. It takes the scores [K] of a prompt's candidates and a generator of
random numbers, and returns any number of lists.

* No tie is a preference: of two responses in a list the one with the higher label has the higher
  score. Candidates of one score never make a list by themselves.
* Labels are the scores, so that a loss can read by how much a response is better; where a method
  has no order among the rejected (`best_all`, `top_bottom`) they are 1 and 0.
* A list begins with its best response, but for `whole`, which leaves the order as it is.
* Candidates are looked at best first, so that what is drawn depends on the scores and not on the
  order in which they come. Of equal scores the candidate that comes first is the better ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import itertools
from typing import NamedTuple

import numpy as np


class Ranked(NamedTuple):
  """A list to train on."""

  places: list[int]  # which candidates
  labels: list[float]  # of each, higher is better; not all equal


Strategy = Callable[[np.ndarray, np.random.Generator], list[Ranked]]


def whole(scores: np.ndarray, rng: np.random.Generator) -> list[Ranked]:
  """All candidates in one list."""
  return _scored(scores, range(len(scores)))


def best_worst(scores: np.ndarray, rng: np.random.Generator) -> list[Ranked]:
  """The best against the worst: iterative DPO's pair."""
  ranks = _ranks(scores)
  return _scored(scores, (ranks[0], ranks[-1]))


def best_second(scores: np.ndarray, rng: np.random.Generator) -> list[Ranked]:
  """The best against the best of those that are worse: the hardest pair."""
  best, *worse = _ranks(scores)
  return _scored(scores, (best, *_below(scores, best, worse)[:1]))


def best_random(scores: np.ndarray, rng: np.random.Generator) -> list[Ranked]:
  """The best against one that is drawn among those that are worse."""
  best, *others = _ranks(scores)
  worse = _below(scores, best, others)
  return _scored(scores, (best, worse[rng.integers(len(worse))])) if worse else []


def best_each(scores: np.ndarray, rng: np.random.Generator) -> list[Ranked]:
  """The best against each that is worse, a pair each, the widest gap first: Curry-DPO's pairs."""
  best, *others = _ranks(scores)
  return [pair for other in reversed(others) for pair in _scored(scores, (best, other))]


def best_all(scores: np.ndarray, rng: np.random.Generator) -> list[Ranked]:
  """The best (label 1) against all that are worse (0): the rows of LarPO's contrastive loss."""
  best, *others = _ranks(scores)
  return _against(scores, best, others)


def top_bottom(
  scores: np.ndarray, rng: np.random.Generator, *, positives: int = 2, negatives: int = 2
) -> list[Ranked]:
  """Each of the best (label 1) against all of the worst (0): the rows of LarPO's training code.

  As many lists as positives, in each of which negatives are left out that are no worse. The
  defaults are those of its ListMLE runs. Raises ValueError where a number is below 1.
  """
  _at_least_one(positives=positives, negatives=negatives)
  ranks = _ranks(scores)
  return [
    group for best in ranks[:positives] for group in _against(scores, best, ranks[-negatives:])
  ]


def matched_ranks(scores: np.ndarray, rng: np.random.Generator, *, pairs: int = 2) -> list[Ranked]:
  """Best and worst, second best and second worst, and so on: the pairs of LarPO's training code.

  Raises ValueError where pairs is below 1.
  """
  _at_least_one(pairs=pairs)
  ranks = _ranks(scores)
  matched = zip(ranks[: min(pairs, len(ranks) // 2)], reversed(ranks))
  return [pair for both in matched for pair in _scored(scores, both)]


def all_pairs(scores: np.ndarray, rng: np.random.Generator) -> list[Ranked]:
  """Every two that have different scores."""
  pairs = itertools.combinations(_ranks(scores), 2)
  return [pair for both in pairs for pair in _scored(scores, both)]


def first_round(scores: np.ndarray, rng: np.random.Generator) -> list[Ranked]:
  """RSO's first-round ranking: random pairs, in which each candidate is once at most."""
  return _matches(scores, _shuffled(scores, rng))[0]


def tournament(scores: np.ndarray, rng: np.random.Generator) -> list[Ranked]:
  """RSO's tournament ranking: the first round, then pairs of its winners, up to the last match.

  One without an opponent goes on to the next round, and of a tie either.
  """
  found: list[Ranked] = []
  left = _shuffled(scores, rng)
  while len(left) > 1:
    pairs, left = _matches(scores, left)
    found += pairs
  return found


def rso(
  scores: np.ndarray,
  rng: np.random.Generator,
  *,
  beta: float = 0.5,
  keep: int = 8,
  pairing: str = "first_round",
) -> list[Ranked]:
  """Pairs of `keep` candidates that statistical rejection sampling accepts.

  RSO, https://arxiv.org/abs/2309.06657, Algorithm 1, which samples from a policy tilted by
  exp(score / beta). Its candidates are a set of texts: set rounds.dedupe=True. pairing is
  "first_round", "tournament" or, for one list of what is accepted, "whole". beta 0.5 is the paper's
  for its reward's logits; 8 of 64 candidates are kept there; 0 keeps the best, a large one any.
  Raises ValueError on another pairing and where keep is below 1 or beta below 0.
  """
  _at_least_one(keep=keep)
  if not beta >= 0:
    raise ValueError(f"beta={beta} must be at least 0: it divides the scores")
  known: dict[str, Strategy] = dict(first_round=first_round, tournament=tournament, whole=whole)
  if pairing not in known:
    raise ValueError(f"pairing={pairing!r} is not one of {', '.join(known)}")
  accepted = _accepted(scores, rng, beta, keep)
  return [
    Ranked([accepted[place] for place in places], labels)
    for places, labels in known[pairing](scores[accepted], rng)
  ]


def _accepted(scores: np.ndarray, rng: np.random.Generator, beta: float, keep: int) -> list[int]:
  """The candidates that are accepted, in their order; all where there are no more than keep.

  Passes over what is left, against its maximum, until there are enough. The paper leaves the order
  to how candidates were sampled; here they come ranked, and are shuffled.
  """
  pool = _shuffled(scores, rng)
  if beta == 0:
    best = sorted(pool, key=lambda place: -scores[place])[:keep]
    return [place for place in pool if place in best]
  accepted: list[int] = []
  while pool and len(accepted) < keep:
    most = max(scores[place] for place in pool)
    taken = []
    for place in pool:
      if rng.random() < np.exp((scores[place] - most) / beta):
        taken.append(place)
        if len(accepted) + len(taken) == keep:
          break
    accepted += taken
    pool = [place for place in pool if place not in taken]
  return accepted


def _ranks(scores: np.ndarray) -> list[int]:
  """Places of the candidates, best first."""
  return np.argsort(-np.asarray(scores), kind="stable").tolist()


def _shuffled(scores: np.ndarray, rng: np.random.Generator) -> list[int]:
  """Places of the candidates in an order that depends on their scores and on what is drawn."""
  return rng.permutation(_ranks(scores)).tolist()


def _below(scores: np.ndarray, best: int, others: Iterable[int]) -> list[int]:
  return [other for other in others if scores[other] < scores[best]]


def _scored(scores: np.ndarray, places: Iterable[int]) -> list[Ranked]:
  """One list with the scores as labels; none where these are all equal."""
  places = [int(place) for place in places]
  labels = [float(scores[place]) for place in places]
  return [Ranked(places, labels)] if len(set(labels)) > 1 else []


def _against(scores: np.ndarray, best: int, others: Iterable[int]) -> list[Ranked]:
  """One list of a response against those that are worse; none where there are none."""
  worse = _below(scores, best, others)
  return [Ranked([best, *worse], [1.0, *[0.0] * len(worse)])] if worse else []


def _matches(scores: np.ndarray, places: Sequence[int]) -> tuple[list[Ranked], list[int]]:
  """The pairs of neighbours, and who wins or has no neighbour."""
  pairs, winners = [], []
  for both in zip(places[::2], places[1::2]):
    winner, loser = sorted(both, key=lambda place: -scores[place])
    pairs += _scored(scores, (winner, loser))
    winners.append(winner)
  return pairs, [*winners, *(places[-1:] if len(places) % 2 else ())]


def _at_least_one(**numbers: int) -> None:
  for name, number in numbers.items():
    if number < 1:
      raise ValueError(f"{name}={number} must be at least 1")
