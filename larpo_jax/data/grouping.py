"""From a config's rounds to a prompt's lists: which strategy, which noise, how many candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from larpo_jax import lookup
from larpo_jax.data.lists import Ranked, Strategy
from larpo_jax.data.noise import Noise

# Where candidates come from: the policy's greedy answer and its samples, another policy, the people
# who wrote the data set or the world's demonstrations, the world's solution.
SOURCES = ("greedy", "self", "teacher", "human", "gold")
REMEMBERED = {"none": 1, "previous": 2}  # rounds that a round learns from, its own among them


class Judged(NamedTuple):
  """A list to train on, and what a noise made of it."""

  places: list[int]  # which candidates
  labels: list[float]  # of each, higher is better; not all equal
  scores: list[float] | None  # what the reward said of each, where there is noise
  misjudged: bool  # another response is preferred than without noise


def resolve(spec: Mapping[str, Any] | None) -> Strategy:
  """The strategy of rounds.lists; None is `lists.whole`. Raises what `lookup.resolve` raises."""
  return lookup.resolve(spec or dict(name="lists.whole"), "larpo_jax.data")


def group(
  strategy: Strategy,
  texts: Sequence[str],
  scores: Sequence[float],
  rng: np.random.Generator,
  *,
  dedupe: bool,
) -> list[Ranked]:
  """The lists of a prompt with these responses; dedupe keeps a text's first place alone."""
  first = {text: place for place, text in reversed(list(enumerate(texts)))}
  kept = sorted(first.values()) if dedupe else list(range(len(texts)))
  found = strategy(np.asarray([scores[place] for place in kept]), rng)
  return [Ranked([kept[place] for place in places], labels) for places, labels in found]


def wide(found: Sequence[Ranked], scores: Sequence[float], min_gap: float) -> list[Ranked]:
  """The lists whose best and worst score are at least min_gap apart."""
  gap = lambda places: np.ptp([scores[place] for place in places])  # noqa: E731
  return [each for each in found if gap(each.places) >= min_gap]


def noise(spec: Mapping[str, Any] | None) -> Noise | None:
  """The noise of rounds.noise. Raises what `lookup.resolve` raises."""
  return None if spec is None else lookup.resolve(spec, "larpo_jax.data")


def judge(
  noise: Noise | None, found: Sequence[Ranked], scores: Sequence[float], rng: np.random.Generator
) -> list[Judged]:
  """The lists with the labels that a noise gives them; scores are those of all candidates."""
  if noise is None:
    return [Judged(places, labels, None, False) for places, labels in found]
  judged = []
  for places, labels in found:
    rewards, clean = np.asarray([scores[place] for place in places]), np.asarray(labels)
    given = noise(rewards, clean, rng)
    misjudged = bool(((given == given.max()) != (clean == clean.max())).any())
    judged.append(Judged(places, given.tolist(), rewards.tolist(), misjudged))
  return judged


def remembered(rounds: Mapping[str, Any], number: int) -> range:
  """The rounds that round `number` learns from, up to its own."""
  return range(max(0, number + 1 - REMEMBERED.get(rounds["memory"], number + 1)), number + 1)


def widest(rounds: Mapping[str, Any], number: int) -> int:
  """Responses of the longest list that round `number` can have; 0 where it can have none."""
  if rounds["steps"] is not None:
    return 2
  count = candidates(rounds)
  if rounds["prompt_split"] == "shared":
    count *= len(remembered(rounds, number))
  found = resolve(rounds["lists"])(np.arange(count, dtype=float), np.random.default_rng(0))
  return max((len(places) for places, _ in found), default=0)


def sources(rounds: Mapping[str, Any]) -> list[str]:
  """Where each candidate of a prompt comes from, in their order."""
  teacher = rounds["teacher"]
  count = {
    "greedy": int(rounds["greedy"]),
    "self": rounds["candidates"] - rounds["greedy"],
    "teacher": len(teacher["paths"]) * teacher["candidates"] if teacher else 0,
    "human": rounds["human"],
    "gold": int(rounds["gold"]),
  }
  return [source for source in SOURCES for _ in range(count[source])]


def candidates(rounds: Mapping[str, Any]) -> int:
  """Responses to a prompt that a round's lists are built of."""
  if rounds["negatives"] != "sampled":
    return 1 + rounds["candidates"]  # the best, and what another prompt was answered with
  return sum(source in (rounds["prefer"] or SOURCES) for source in sources(rounds))
