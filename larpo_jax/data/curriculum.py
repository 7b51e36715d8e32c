"""Lists of a round by their difficulty, cut into parts that are learnt one after the other.

Every public function is one that the config may name, as in `rounds.curriculum =
dict(name="curriculum.easy_to_hard", stages=3)`. It takes the difficulty [N] of N lists and a
generator of random numbers, and returns the rows of each part; parts are of one size but for a
row. Rows of one difficulty keep their order. All raise ValueError where there are fewer lists than
parts.
"""

from __future__ import annotations

import numpy as np


def easy_to_hard(
  difficulty: np.ndarray, rng: np.random.Generator, *, stages: int = 3
) -> list[np.ndarray]:
  """The easiest lists first: Curry-DPO's order, https://arxiv.org/abs/2403.07230."""
  return _cut(np.argsort(difficulty, kind="stable"), stages)


def hard_to_easy(
  difficulty: np.ndarray, rng: np.random.Generator, *, stages: int = 3
) -> list[np.ndarray]:
  """The hardest first: the control of the order's direction."""
  return _cut(np.argsort(-difficulty, kind="stable"), stages)


def random_stages(
  difficulty: np.ndarray, rng: np.random.Generator, *, stages: int = 3
) -> list[np.ndarray]:
  """Parts of one difficulty each, in a random order: the control of the order alone."""
  parts = easy_to_hard(difficulty, rng, stages=stages)
  return [parts[place] for place in rng.permutation(stages)]


def shuffled(
  difficulty: np.ndarray, rng: np.random.Generator, *, stages: int = 3
) -> list[np.ndarray]:
  """In no order: the control that has as many parts."""
  return _cut(rng.permutation(len(difficulty)), stages)


def _cut(order: np.ndarray, stages: int) -> list[np.ndarray]:
  if not 1 <= stages <= max(len(order), 1):
    raise ValueError(
      f"stages={stages} parts of {len(order)} lists: give from 1 to as many stages as lists"
    )
  return np.array_split(order, stages)
