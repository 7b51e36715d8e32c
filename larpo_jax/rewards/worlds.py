"""The exact rewards of the worlds."""

from __future__ import annotations

import numpy as np

from larpo_jax.worlds import arithmetic as _arithmetic
from larpo_jax.worlds import bandit as _bandit


def arithmetic(prompts: list[str], responses: list[list[str]]) -> np.ndarray:
  """The gold reward of `worlds.arithmetic`, float32 [B, K] in [0, 1].

  Raises ValueError where a prompt is not a problem of that world.
  """
  return _arithmetic.gold(prompts, responses)


def bandit(prompts: list[str], responses: list[list[str]]) -> np.ndarray:
  """The gold reward of `worlds.bandit`, float32 [B, K] in [0, 1].

  Raises ValueError where a prompt is not one of that world's.
  """
  return _bandit.gold(prompts, responses)
