"""The exact rewards of the worlds."""

from __future__ import annotations

import math

import numpy as np

from larpo_jax.worlds import arithmetic as _arithmetic


def arithmetic(prompts: list[str], responses: list[list[str]], *, scale: float = 1.0) -> np.ndarray:
  """`scale` times the gold reward of `worlds.arithmetic`, float32 [B, K] in [0, scale].

  Scaled, it is a logit for what reads one: `noise.bradley_terry`, `scored.madpo`. Raises ValueError
  where a prompt is not a problem of that world, or scale is not above 0.
  """
  if not 0 < scale < math.inf:
    raise ValueError(f"scale={scale} must be above 0 and finite")
  return np.float32(scale) * _arithmetic.gold(prompts, responses)
