"""Draws of arguments and of hyper-parameters, and kernels compiled once, for tests of values."""

import functools
import math

from draws import lists
import jax
import jax.numpy as jnp
import kernels
from longhand import FORMULAS, moved
import longhand_batch  # noqa: F401
import longhand_lists  # noqa: F401
import longhand_pairs  # noqa: F401
import longhand_scored  # noqa: F401
import numpy as np

from larpo_jax import lookup

# Which of four responses are nudged up, and which down: any two are told apart.
SIGNS = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1))
SPREADS = (0.1, 3.0, 100.0, 1e4)


def arguments(seed, i, spread=None):
  """The i-th draw of 8 prompts: every spread, tied or not, ragged or not, near and far."""
  policy, reference, batch = lists(
    seed + i,
    spread=spread or SPREADS[i % 4],
    tied=i % 3 > 0,
    ragged=i % 5 > 0,
    distance=(1.0, 0.1, 10.0, 1.0, 0.01, 0.0)[i % 7 % 6],
  )
  rng = np.random.default_rng([seed, i])
  importance = np.where(rng.random(batch.label.shape) < 0.4, 0.0, batch.importance)
  shared = rng.integers(0, 3, (8, 1, 1)) > np.arange(batch.response.shape[2])
  batch = batch.replace(
    importance=importance.astype(np.float32),
    # Responses to a prompt start alike, the two lists of tokens being few.
    response=np.where(shared, 7, batch.response % 2).astype(np.int32),
    weight=np.where((np.arange(8) == 5) & (i % 2 > 0), 0.0, 1.0).astype(np.float32),
  )
  return policy, reference, batch


def hyper_parameters(name, seed, i):
  """(numbers, settings) of the i-th draw."""
  rng, numbers, settings = np.random.default_rng([seed, i, 1]), {}, {}
  for place, (key, values) in enumerate(FORMULAS[name].hyper_parameters.items()):
    if isinstance(values, list):
      settings[key] = values[(i + place) % len(values)]
      continue
    low, high = values
    x = math.exp(rng.uniform(math.log(low), math.log(high))) if low else rng.uniform(low, high)
    numbers[key] = np.float32(0.0 if low == 0 and i % 6 == 1 else x)
  return numbers, settings


@functools.cache
def compiled(name, settings=()):
  """(policy, reference, batch, numbers, statistics) -> (loss, gradient, statistics)."""
  carries = name in kernels.KERNELS and hasattr(kernels.kernel(name), "statistics")

  def run(policy, reference, batch, numbers, statistics=None):
    kernel, given = _kernel(name, {**dict(settings), **numbers})

    def total(token):
      extra = (statistics,) if carries else ()
      loss, _, *after = kernel(policy.replace(token=token), reference, batch, *extra, **given)
      return jnp.sum(loss * batch.weight), (loss, after)

    gradient, (loss, after) = jax.grad(total, has_aux=True)(policy.token)
    return loss, gradient, *after

  return jax.jit(run)


def _kernel(name, given):
  """The kernel of a name such as "wrappers.wpo(pairwise.ipo)", and the arguments for the call."""
  outer, _, inner = name.rstrip(")").partition("(")
  if not inner:
    return lookup.find(name, kernels.PACKAGE), given
  one = functools.partial(lookup.find(inner, kernels.PACKAGE), beta=given.pop("beta"))
  return lookup.find(outer, kernels.PACKAGE)(one, **given), {}


def expected(name, rows, numbers, settings, **more):
  """The formula's losses, and how much they move when log-probs do, by a millionth."""
  given = {**{key: float(x) for key, x in numbers.items()}, **settings, **more}
  run = lambda rows: np.atleast_1d(np.float64(FORMULAS[name].losses(rows, **given)))  # noqa: E731
  loss, moves = run(rows), 0.0
  for signs in SIGNS:
    nudged = [_nudged(row, signs) for row in rows]
    moves = np.maximum(moves, abs(run(nudged) - loss))
  return loss, moves


def _by(values, sign):
  return [x + sign * 1e-6 * abs(x) for x in values]


def _nudged(row, signs):
  sign = {id(y): x for y, x in zip(row.responses, signs)}
  return moved([row], lambda y: (_by(y.policy, sign[id(y)]), _by(y.reference, -sign[id(y)])))[0]


def slope(name, rows, direction, numbers, settings, step=1e-5):
  """d(total of the formula) / d(log-probs of the policy along a direction), by differences.

  Also how far that is from the slopes on either side: where a hinge bends within a step, the
  derivative is one of those and not their mean.
  """
  given = {**{key: float(x) for key, x in numbers.items()}, **settings}
  ends = []
  for sign in (1, 0, -1):
    there = moved(rows, functools.partial(_along, direction, sign * step), hold=True)
    losses = np.atleast_1d(np.float64(FORMULAS[name].losses(there, **given)))
    weight = [row.weight for row in rows] if losses.size > 1 else [1.0]
    ends.append(float(losses @ np.float64(weight)))
  ahead, here, behind = ends
  return (ahead - behind) / (2 * step), abs(ahead - 2 * here + behind) / (2 * step)


def _along(direction, step, y):
  return [p + step * u for p, u in zip(y.policy, direction[id(y)])], y.reference
