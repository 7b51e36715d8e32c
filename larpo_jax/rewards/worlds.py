"""The exact rewards of the worlds."""

from __future__ import annotations

import numpy as np

from larpo_jax.worlds import arithmetic as _arithmetic


def arithmetic(prompts: list[str], responses: list[list[str]]) -> np.ndarray:
  """The gold reward of `worlds.arithmetic`, float32 [B, K] in [0, 1].

  Raises ValueError where a prompt is not a problem of that world.
  """
  return _arithmetic.gold(prompts, responses)


def arithmetic_answer(prompts: list[str], responses: list[list[str]]) -> np.ndarray:
  """1 where the final answer is right, whatever the steps, else 0; float32 [B, K].

  Raises ValueError where a prompt is not a problem of that world.
  """
  return _arithmetic.accuracy(prompts, responses)
