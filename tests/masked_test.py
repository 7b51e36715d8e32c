"""Masked reductions against NumPy on what is selected, and their gradients where nothing is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from larpo_jax import masked

REDUCTIONS = {"sum": np.sum, "mean": np.mean, "std": np.std}


@pytest.fixture
def draw(seed):
  rng = np.random.default_rng(seed)
  mask = rng.random((6, 5)) < 0.5
  mask[0], mask[1], mask[2, :2] = False, True, True
  return rng.normal(size=(6, 5)).astype(np.float32), mask


def spoiled(x, mask):
  """Garbage of every kind where the mask is 0."""
  kinds = np.resize(np.float32([np.nan, np.inf, -np.inf, 1e30]), x.shape)
  return np.where(mask, x, kinds)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_only_what_is_selected_counts(name, draw):
  x, mask = draw
  expected = [REDUCTIONS[name](row[chosen]) if chosen.any() else 0.0 for row, chosen in zip(*draw)]
  found = getattr(masked, name)(spoiled(x, mask), mask, -1)
  np.testing.assert_allclose(found, expected, 1e-5, 1e-6)
  whole = getattr(masked, name)(spoiled(x, mask), mask)
  np.testing.assert_allclose(whole, REDUCTIONS[name](x[mask]), 1e-5, 1e-6)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_gradient_is_finite_and_zero_where_masked(name, draw):
  x, mask = draw
  x[1] = 2.0  # no spread: the root of 0 has no slope
  reduce = getattr(masked, name)
  gradient = jax.grad(lambda x: jnp.sum(reduce(x, mask, -1)))(jnp.asarray(spoiled(x, mask)))
  assert np.isfinite(gradient).all()
  assert not np.any(np.where(mask, 0.0, gradient))
  assert np.any(gradient[2])


def test_float_masks_select_where_they_are_not_zero(draw):
  x, mask = draw
  np.testing.assert_allclose(masked.mean(x, 0.5 * mask, -1), masked.mean(x, mask, -1), 1e-6)


@pytest.mark.parametrize("axis", [-1, 0, (0, 1), None])
def test_mean_counts_an_axis_that_is_broadcast(axis, draw):
  x, mask = draw
  for one, other in ((x[:, :1], mask), (x, mask[:, :1])):
    full = np.broadcast_arrays(one, other)
    expected = masked.mean(*full, axis)
    np.testing.assert_allclose(masked.mean(one, other, axis), expected, 1e-5, 1e-6)


def test_pairs_are_strict_and_of_the_valid(seed):
  rng = np.random.default_rng(seed)
  label, valid = rng.integers(0, 3, (7, 4)), rng.random((7, 4)) < 0.7
  found = masked.pairs(label, valid)
  for b, i, j in np.ndindex(7, 4, 4):
    assert found[b, i, j] == (valid[b, i] and valid[b, j] and label[b, i] > label[b, j])


def test_weighted_mean(seed):
  rng = np.random.default_rng(seed)
  x, weight = rng.normal(size=9), rng.random(9) * (np.arange(9) % 3 > 0)
  spoilt = np.where(weight > 0, x, np.nan)
  found = masked.weighted_mean(spoilt, weight)
  np.testing.assert_allclose(found, np.average(x, weights=weight), 1e-5)
  assert masked.weighted_mean(np.full(9, np.nan), np.zeros(9)) == 0
  gradient = jax.grad(masked.weighted_mean)(jnp.asarray(spoilt), weight)
  np.testing.assert_allclose(gradient, weight / weight.sum(), 1e-5)
