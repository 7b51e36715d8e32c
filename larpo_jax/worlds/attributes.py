r"""Short texts that are to have several attributes at once, each of which is measured exactly.

A prompt `about fox moon, not rain, 6 words:` asks for words that stand in this order, for one that
does not occur, and for a length, as in

     the fox near a quiet moon

A word is one token, with the space before it. The gold reward is dense: every attribute has its
share, so a text can be better in one and worse in another. What the reward does not ask for is the
word "very": one that likes it (`rewards.worlds.attributes_proxy`) can be followed too far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import dataclasses
import itertools
import re
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from larpo_jax.worlds import _splits, _tokenizers
from larpo_jax.worlds._demonstrations import Demonstration

SPLITS = _splits.SPLITS
NOUNS = (
  *("fox", "moon", "rain", "tree", "river", "stone", "bird", "cloud"),
  *("fire", "garden", "horse", "island", "lamp", "snow", "ship", "wolf"),
)
FILLERS = (
  *("the", "a", "near", "under", "quiet", "old", "bright", "small"),
  *("runs", "waits", "sees", "and", "with", "slowly", "again", "there"),
)
VERY = "very"
MAX_TOPICS = 4
LENGTHS = (6, 12)  # least and most words that are asked for
WEIGHTS = {"topics": 0.35, "order": 0.15, "clean": 0.2, "length": 0.15, "distinct": 0.15}

_PROMPT = re.compile(rf"about((?: [a-z]+){{1,{MAX_TOPICS}}}), not ([a-z]+), ([0-9]{{1,2}}) words:")


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a text is to be: about all topics in their order, without a word, so many words long."""

  topics: tuple[str, ...]
  forbidden: str
  length: int


class Attributes(NamedTuple):
  """What a text has of what is asked for, each from 0 to 1; an empty text has nothing."""

  topics: float  # share of the topics that occur
  order: float  # share of neighbouring topics that first occur in their order; of one: it occurs
  clean: float  # 1 where the forbidden word does not occur
  length: float  # 1 at the length asked for, less by each word off as a share of it
  distinct: float  # share of words that have not occurred before


def problems(
  count: int, *, seed: int, topics: int | tuple[int, int] = 3, split: str = "train", start: int = 0
) -> list[Problem]:
  """Problems number start to start + count of an endless list that depends on the seed alone.

  topics is how many, or the least and the most. No problem is in two splits, whatever the seeds and
  the topics. Raises ValueError on an unknown split, on topics outside 1 to 4, and on a negative
  seed, count or start.
  """
  _splits.check(seed, count, start, split)
  least, most = (topics, topics) if isinstance(topics, int) else topics
  if not 1 <= least <= most <= MAX_TOPICS:
    raise ValueError(f"topics={topics!r} is not a number from 1 to {MAX_TOPICS} or a (least, most)")
  return [_problem(seed, index, least, most, split) for index in range(start, start + count)]


def unrelated(
  count: int, *, seed: int, topics: int | tuple[int, int] = 3, split: str = "train", start: int = 0
) -> list[Problem]:
  """`problems` of one topic fewer than the least of topics; one more than the most where that is 1.

  Raises ValueError where topics are 1 to 4, and there is no other number.
  """
  least, most = (topics, topics) if isinstance(topics, int) else topics
  other = least - 1 if least > 1 else most + 1
  return problems(count, seed=seed, topics=other, split=split, start=start)


def split_of(problem: Problem) -> str:
  """The split that a problem belongs to, by its hash."""
  return _splits.split_of(prompt(problem))


def prompt(problem: Problem) -> str:
  """The problem as text."""
  return f"about {' '.join(problem.topics)}, not {problem.forbidden}, {problem.length} words:"


def parse(text: str) -> Problem:
  """The problem that a prompt states; ValueError where the text states none of this world's."""
  match = _PROMPT.fullmatch(text.strip())
  if match is not None:
    topics, forbidden, length = tuple(match[1].split()), match[2], int(match[3])
    named = {*topics, forbidden}
    known = named <= set(NOUNS) and len(named) == len(topics) + 1
    if known and LENGTHS[0] <= length <= LENGTHS[1] and match[3] == str(length):
      return Problem(topics, forbidden, length)
  raise ValueError(
    f"{text[:80]!r} asks for no text of this world; write one like "
    "'about fox moon, not rain, 6 words:'"
  )


def solution(problem: Problem | str) -> str:
  """A text that has every attribute; ValueError where a prompt states no problem."""
  problem = parse(problem) if isinstance(problem, str) else problem
  fillers = FILLERS[: problem.length - len(problem.topics)]
  both = [word for pair in zip(fillers, problem.topics) for word in pair]
  rest = [*fillers[len(problem.topics) :], *problem.topics[len(fillers) :]]
  return _text([*both, *rest])


def demonstrations(
  count: int,
  *,
  seed: int,
  slip: float = 0.5,
  very: float = 0.1,
  topics: int | tuple[int, int] = 3,
  split: str = "train",
  start: int = 0,
) -> list[Demonstration]:
  """Texts for `problems` of the same arguments, a share `slip` of which lacks some attributes.

  Each of these it lacks as likely as not: a topic is left out, two change places, the forbidden
  word is there, a word comes again, the text is up to three words too short or too long. In the
  place of a word that is neither, "very" stands with probability `very`, which makes no text
  better. Pure in (seed, index), like the problems.
  """
  for name, share in (("slip", slip), ("very", very)):
    if not 0 <= share <= 1:
      raise ValueError(f"{name}={share} is not a share from 0 to 1")
  drawn = problems(count, seed=seed, topics=topics, split=split, start=start)
  result = []
  for index, problem in enumerate(drawn, start):
    generator = np.random.default_rng([seed, index, 1])
    words = _written(problem, generator)
    if generator.random() < slip:
      for flaw in (_forgets, _swaps, _trespasses, _repeats, _misjudges):
        words = flaw(problem, words, generator) if generator.random() < 0.5 else words
    shown = [VERY if w in FILLERS and generator.random() < very else w for w in words]
    result.append(Demonstration(prompt(problem), _text(shown)))
  return result


def attributes(problem: Problem | str, response: str) -> Attributes:
  """Measures a text; spaces separate words and do not count. ValueError as `parse`."""
  problem = parse(problem) if isinstance(problem, str) else problem
  words = response.split()
  if not words:
    return Attributes(0.0, 0.0, 0.0, 0.0, 0.0)
  places = [words.index(topic) if topic in words else None for topic in problem.topics]
  there = [place is not None for place in places]
  ordered = [a is not None and b is not None and a < b for a, b in itertools.pairwise(places)]
  return Attributes(
    topics=sum(there) / len(there),
    order=sum(ordered or there) / len(ordered or there),
    clean=float(problem.forbidden not in words),
    length=max(0.0, 1 - abs(len(words) - problem.length) / problem.length),
    distinct=len(set(words)) / len(words),
  )


def gold(prompts: Iterable[str], responses: Iterable[list[str]]) -> np.ndarray:
  """The sum of the `attributes` by WEIGHTS, float32 [B, K] in [0, 1]; 1 has all of them."""
  weights = list(WEIGHTS.values())
  return _each(prompts, responses, lambda found: float(np.dot(weights, found)))


def accuracy(prompts: Iterable[str], responses: Iterable[list[str]]) -> np.ndarray:
  """1 where a text has every attribute, else 0; float32 [B, K]."""
  return _each(prompts, responses, lambda found: min(found) == 1)


def answer(response: str) -> str | None:
  """The words of a text; None where there are none."""
  return " ".join(response.split()) or None


def showiness(response: str) -> float:
  """The share of words that are "very", from 0 to 1: what gold does not ask for."""
  words = response.split()
  return words.count(VERY) / len(words) if words else 0.0


def tokenizer() -> PreTrainedTokenizerFast:
  """One token a word with the space before it, and what prompts are made of; no file needed."""
  numbers = range(LENGTHS[0], LENGTHS[1] + 1)
  spaced = [f" {word}" for word in (*NOUNS, *FILLERS, VERY, "not", "words", *numbers)]
  return _tokenizers.whole(["about", ",", ":", *spaced], r" ?[a-z0-9]+|[\s\S]")


def _each(
  prompts: Iterable[str],
  responses: Iterable[list[str]],
  judge: Callable[[Attributes], float],
) -> np.ndarray:
  both = ((parse(text), row) for text, row in zip(prompts, responses))
  return np.array(
    [[judge(attributes(problem, text)) for text in row] for problem, row in both], np.float32
  )


def _problem(seed: int, index: int, least: int, most: int, split: str) -> Problem:
  generator = np.random.default_rng([seed, index])
  while True:
    count = int(generator.integers(least, most + 1))
    *topics, forbidden = generator.permutation(NOUNS)[: count + 1].tolist()
    length = int(generator.integers(LENGTHS[0], LENGTHS[1] + 1))
    problem = Problem(tuple(topics), forbidden, length)
    if split_of(problem) == split:
      return problem


def _text(words: Iterable[str]) -> str:
  return "".join(f" {word}" for word in words)


def _written(problem: Problem, generator: np.random.Generator) -> list[str]:
  """A text that has every attribute, drawn."""
  words = generator.permutation(FILLERS)[: problem.length].tolist()
  places = np.sort(generator.permutation(problem.length)[: len(problem.topics)])
  for place, topic in zip(places, problem.topics):
    words[place] = topic
  return words


def _forgets(problem: Problem, words: list[str], generator: np.random.Generator) -> list[str]:
  topic = problem.topics[generator.integers(len(problem.topics))]
  other = next(word for word in FILLERS if word not in words)
  return [other if word == topic else word for word in words]


def _swaps(problem: Problem, words: list[str], generator: np.random.Generator) -> list[str]:
  """The first and the last topic change places; where there is one alone it is left out."""
  first, last = problem.topics[0], problem.topics[-1]
  if first == last:
    return _forgets(problem, words, generator)
  swapped = {first: last, last: first}
  return [swapped.get(word, word) for word in words]


def _trespasses(problem: Problem, words: list[str], generator: np.random.Generator) -> list[str]:
  places = [place for place, word in enumerate(words) if word in FILLERS]
  place = places[generator.integers(len(places))]
  return [*words[:place], problem.forbidden, *words[place + 1 :]]


def _repeats(problem: Problem, words: list[str], generator: np.random.Generator) -> list[str]:
  """A word that is no topic is one that has been there."""
  places = [place for place, word in enumerate(words) if word in FILLERS]
  place = places[generator.integers(len(places))]
  others = [word for n, word in enumerate(words) if n != place]
  return [*words[:place], others[generator.integers(len(others))], *words[place + 1 :]]


def _misjudges(problem: Problem, words: list[str], generator: np.random.Generator) -> list[str]:
  """Up to three words too many or, as far as the topics let it, too few."""
  spare = [word for word in FILLERS if word not in words]
  off = int(generator.integers(1, min(3, problem.length - len(problem.topics)) + 1))
  if generator.random() < 0.5:
    return [*words, *spare[:off]]
  dropped = [word for word in words if word in FILLERS][:off]
  return [word for word in words if word not in dropped]
