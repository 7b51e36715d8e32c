"""Reductions that take a mask: nothing selected gives 0, and a gradient of 0."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax.types import Array


def sum(x: Array, mask: Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
  """Sum of x where mask is not 0; what is masked may be nan or inf."""
  return jnp.sum(jnp.where(mask, x, 0.0), axis=axis)


def mean(x: Array, mask: Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
  """Mean of x where mask is not 0; 0 where nothing is."""
  # Counted over the common shape: an axis along which one of the two is 1 wide counts in full.
  count = jnp.sum(jnp.where(mask, jnp.ones_like(x), 0.0), axis=axis)
  return sum(x, mask, axis) / jnp.maximum(count, 1.0)


def std(x: Array, mask: Array, axis: int | None = None) -> jax.Array:
  """Population standard deviation of x where mask is not 0; 0 where fewer than two are."""
  centre = mean(x, mask, axis)
  centre = centre if axis is None else jnp.expand_dims(centre, axis)
  variance = mean(jnp.square(jnp.where(mask, x - centre, 0.0)), mask, axis)
  positive = variance > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def pairs(label: Array, valid: Array) -> Array:
  """Which pairs are ordered: bool [..., K, K], True at (i, j) where i is strictly better than j."""
  both = valid[..., :, None] & valid[..., None, :]
  return both & (label[..., :, None] > label[..., None, :])


def weighted_mean(x: Array, weight: Array) -> jax.Array:
  """sum(weight x) / sum(weight); 0 where all weights are 0. What has weight 0 may be nan."""
  total = jnp.sum(weight)
  return jnp.sum(jnp.where(weight > 0, x * weight, 0.0)) / jnp.where(total > 0, total, 1.0)
