"""Gradients of a batch that is too large for one pass: the same numbers, a part at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from larpo_jax.types import Array, Batch, LogProbs, Metrics

Value = tuple[jax.Array, Metrics]  # a mean over prompts, by their weights, and others like it


def summed(objective: Callable[[Any, Batch], Value], params: Any, batch: Batch, count: int):
  """(value, metrics, gradient) of objective(params, batch), a mean over prompts, in `count` parts.

  One pass: values and gradients of the parts are added as sums and divided once. Exact where the
  term of a prompt depends on no other prompt.
  """

  def total(params, part):
    value, metrics = objective(params, part)
    weight = jnp.sum(part.weight)
    return value * weight, jax.tree.map(lambda m: m * weight, metrics)

  slope = jax.value_and_grad(total, has_aux=True)
  if count == 1:
    sums = slope(params, batch)
  else:
    parts = split(batch, count)
    shapes = jax.eval_shape(slope, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    add = lambda sums, part: (jax.tree.map(jnp.add, sums, slope(params, part)), None)  # noqa: E731
    sums, _ = jax.lax.scan(add, zeros, parts)
  weight = jnp.sum(batch.weight)
  weight = jnp.where(weight > 0, weight, 1.0)
  (value, metrics), gradient = jax.tree.map(lambda x: x / weight, sums)
  return value, metrics, gradient


def coupled(
  score: Callable[[Any, Batch], LogProbs],
  reference: Callable[[Batch], LogProbs],
  loss: Callable[[LogProbs, LogProbs, Batch], tuple[jax.Array, Any]],
  params: Any,
  batch: Batch,
  count: int,
):
  """(value, what else the loss gives, gradient) where the loss is one of the whole batch.

  In one part it is plain differentiation. In several, two passes: the log-probs of all parts, the
  loss and its slope in them on the whole batch, then one vector-Jacobian product a part. Exact for
  every loss, at the price of a second forward.
  """
  if count == 1:
    whole = lambda params: loss(score(params, batch), reference(batch), batch)  # noqa: E731
    (value, others), gradient = jax.value_and_grad(whole, has_aux=True)(params)
    return value, others, gradient
  parts = split(batch, count)
  policy = _joined(jax.lax.map(lambda part: score(params, part), parts))
  fixed = _joined(jax.lax.map(reference, parts))
  on_whole_batch = lambda outputs: loss(policy.replace(**outputs), fixed, batch)  # noqa: E731
  value_and_slope = jax.value_and_grad(on_whole_batch, has_aux=True)
  (value, others), slope = value_and_slope(_outputs(policy))

  def add(gradient, part_and_slope):
    part, pulled = part_and_slope
    _, backward = jax.vjp(lambda p: _outputs(score(p, part)), params)
    return jax.tree.map(jnp.add, gradient, backward(pulled)[0]), None

  zeros = jax.tree.map(jnp.zeros_like, params)
  gradient, _ = jax.lax.scan(add, zeros, (parts, split(slope, count)))
  return value, others, gradient


def split(batch: Any, count: int) -> Any:
  """[B, ...] -> [count, B / count, ...], strided, so that each part lies on all devices.

  Raises ValueError when count does not divide the prompts.
  """
  prompts = jax.tree.leaves(batch)[0].shape[0]
  if prompts % count:
    raise ValueError(
      f"accumulation={count} does not divide the batch of {prompts} prompts: change one of the two"
    )
  cut = lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)  # noqa: E731
  return jax.tree.map(cut, batch)


def _joined(parts: Any) -> Any:
  """Undoes split."""
  join = lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])  # noqa: E731
  return jax.tree.map(join, parts)


def _outputs(policy: LogProbs) -> dict[str, Array]:
  """What a loss may have a slope in; the mask is not one of them."""
  outputs = {"token": policy.token, "entropy": policy.entropy, "kl": policy.kl}
  return {name: value for name, value in outputs.items() if value is not None}
