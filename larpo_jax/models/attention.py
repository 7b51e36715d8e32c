"""Attention to a shared prefix and to one's own block, under one softmax.

J responses share J' prefixes, J' in {1, J}: the queries are regrouped to [J', J / J' * T] against
each prefix, so that its keys and values are never copied.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from larpo_jax.models import fused

MASKED = -1e30  # finite, so that a row with no key at all averages instead of giving nan


class Block(NamedTuple):
  """Keys, values and who sees them.

  key, value: [B, J', S, G, d]; mask: bool [B, J', T or J / J' * T or 1, S].
  """

  key: jax.Array
  value: jax.Array
  mask: jax.Array


def attend(
  query: jax.Array,
  own: Block,
  prefix: Block | None = None,
  *,
  scale: float,
  softcap: float | None = None,
  implementation: str = "xla",
) -> jax.Array:
  """softmax over the prefix's and the own keys together; [B, J, T, H, d] -> [B, J, T, H, d].

  The softmax is float32 whatever the inputs are. implementation "fused" never stores the scores,
  and cannot soft-cap them: raises ValueError.
  """
  if implementation == "fused":
    if softcap is not None:
      raise ValueError("attention 'fused' cannot soft-cap scores as this model does; use 'xla'")
    return fused.attend(query, own, prefix, scale=scale)
  parts = [_partial(query, block, scale, softcap) for block in (prefix, own) if block is not None]
  top = functools.reduce(jnp.maximum, (maximum for _, _, maximum in parts))
  rescaled = [jnp.exp(maximum - top) for _, _, maximum in parts]
  total = functools.reduce(jnp.add, (z * c for (_, z, _), c in zip(parts, rescaled)))
  output = functools.reduce(jnp.add, (o * c[..., None] for (o, _, _), c in zip(parts, rescaled)))
  return (output / total[..., None]).astype(query.dtype)


def _partial(
  query: jax.Array, block: Block, scale: float, softcap: float | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Unnormalised output [B, J, T, H, d], sum of exponentials and the largest score [B, J, T, H].

  The largest score only steadies the exponentials: it cancels, so it takes no gradient.
  """
  b, j, t, h, d = query.shape
  groups, g = block.key.shape[1], block.key.shape[3]
  grouped = query.reshape(b, groups, j // groups * t, g, h // g, d)
  scores = jnp.einsum(
    "bjtgnd,bjsgd->bjgnts", grouped, block.key, preferred_element_type=jnp.float32
  )
  scores = scores * scale
  if softcap is not None:
    scores = jnp.tanh(scores / softcap) * softcap
  scores = jnp.where(block.mask[:, :, None, None], scores, MASKED)
  largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
  weights = jnp.exp(scores - largest[..., None])
  output = jnp.einsum(
    "bjgnts,bjsgd->bjtgnd",
    weights.astype(block.value.dtype),
    block.value,
    preferred_element_type=jnp.float32,
  )
  ungroup = lambda x: jnp.moveaxis(x, -1, 2).reshape(b, j, t, h)  # noqa: E731
  return output.reshape(b, j, t, h, d), ungroup(jnp.sum(weights, axis=-1)), ungroup(largest)
