"""What each kernel computes: its formula longhand in float64, at random draws and at extremes."""

import kernels
from longhand import FORMULAS, prompts
from longhand_draws import arguments, compiled, expected, hyper_parameters, slope
import numpy as np
import pytest

from larpo_jax import lookup

RANDOM = {"batchwise.beta_dpo", "tokenwise.sampo"}  # given what they draw: losses_steps_test.py
every_formula = pytest.mark.parametrize("name", [name for name in FORMULAS if name not in RANDOM])
BATCHES = 25  # of 8 prompts
MEANS = {"pointwise.sft_tokens"}  # the formula is the mean over the batch, else the total
# Exponentials of log-ratios: of large ones float32 keeps neither squares nor differences.
EXPONENTIAL = ("wrappers.forward_kl", "wrappers.alpha_divergence")


def test_every_kernel_has_its_formula_here():
  assert {*kernels.SUBJECTS} <= {*FORMULAS}


@pytest.mark.parametrize("name", FORMULAS)
def test_every_hyper_parameter_takes_several_values(name):
  outer, _, inner = name.rstrip(")").partition("(")
  names = [{*lookup.keywords(lookup.find(x, kernels.PACKAGE))} for x in (outer, inner) if x]
  assert {*FORMULAS[name].hyper_parameters} == set.union(*names)
  assert all(len(values) > 1 for values in FORMULAS[name].hyper_parameters.values())


def differences(name, seed, i, spread=None, without=()):
  policy, reference, batch = arguments(seed, i, spread)
  batch = batch.replace(**dict.fromkeys(without))
  numbers, settings = hyper_parameters(name, seed, i)
  run = compiled(name, tuple(settings.items()))
  loss, *_ = run(policy, reference, batch, numbers)
  loss = np.where(batch.weight > 0, loss, 0.0)
  want, moves = expected(name, prompts(policy, reference, batch), numbers, settings)
  if want.shape == loss.shape:
    want, moves = (np.where(batch.weight > 0, x, 0.0) for x in (want, moves))
  else:  # of the batch as a whole
    loss = loss.sum() / (batch.weight.sum() if name in MEANS else 1.0)
  # What float32 can not tell apart is no difference.
  off = np.abs(loss - want) > 1e-6 + 1e-5 * np.abs(want) + moves
  off |= ~np.isfinite(loss)
  return off, loss, want, moves, settings, numbers


@every_formula
def test_loss_is_its_formula(name, seed):
  for i in range(BATCHES):
    spread = 0.3 if name.startswith(EXPONENTIAL) else None
    off, loss, want, moves, *given = differences(name, seed, i, spread)
    assert not off.any(), (i, loss, want, moves, given)


@every_formula
def test_gradient_is_the_slope_of_the_formula(name, seed):
  """Along random directions; a stopped gradient is held in the formula too."""
  for i, spread in ((1, 0.1), (3, 1.0), (10, 3.0)):  # none at the reference, where hinges bend
    policy, reference, batch = arguments(seed, i, spread)
    numbers, settings = hyper_parameters(name, seed, i)
    _, gradient, *_ = compiled(name, tuple(settings.items()))(policy, reference, batch, numbers)
    gradient = np.float64(gradient)
    if name in MEANS:
      gradient /= batch.weight.sum()
    assert not gradient[policy.mask == 0].any()
    rows = prompts(policy, reference, batch)
    for turn in range(2):
      direction = np.random.default_rng([seed, i, turn]).normal(size=policy.token.shape)
      along = {
        id(y): direction[b, k][policy.mask[b, k] > 0].tolist()
        for b, row in enumerate(rows)
        for k, y in zip(np.flatnonzero(batch.valid[b]), row.responses)
      }
      want, bend = slope(name, rows, along, numbers, settings)
      near = 1e-6 + 1e-5 * np.abs(gradient * direction).sum() + bend
      np.testing.assert_allclose((gradient * direction).sum(), want, 1e-4, near)


OPTIONAL = [(name, field) for name in kernels.KERNELS for field in kernels.attribute(name, "reads")]


@pytest.mark.parametrize(("name", "field"), [x for x in OPTIONAL if x[0] != "tokenwise.rrpo"])
def test_loss_without_what_data_may_bring(name, field, seed):
  for i in range(4):
    off, *found = differences(name, seed, i, without=[field])
    assert not off.any(), (i, found)
