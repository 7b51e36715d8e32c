"""The mean of all rewards so far, which kernels carry from step to step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax import masked

Statistics = dict[str, jax.Array]


def nothing_yet() -> Statistics:
  """Before the first step: how many rewards were seen, and their mean."""
  zero = jnp.zeros((), jnp.float32)
  return {"count": zero, "mean": zero + 0.0}


def mean(statistics: Statistics, x: jax.Array, weight: jax.Array) -> Statistics:
  """With those of one more batch; x is weighted by weight, of the same shape. No gradient."""
  added = jnp.sum(weight)
  count = statistics["count"] + added
  now = masked.weighted_mean(x, weight)
  moved = (now - statistics["mean"]) * added / jnp.maximum(count, 1e-30)
  return jax.lax.stop_gradient({"count": count, "mean": statistics["mean"] + moved})
