"""Prompts and the responses that continue them, as rows of real tokens.

Norms, projections and the MLPs see rows without padding; only attention sees padded blocks, into
which rows are moved and from which they come back. Rows lie in S groups: devices that hold
different groups do not talk to each other.
"""

from __future__ import annotations

from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from larpo_jax.models import attention, blocks
from larpo_jax.models.config import Config
from larpo_jax.models.layer import Inputs, Mixed
from larpo_jax.types import Array


class Lists(NamedTuple):
  """Padded tokens, at either end."""

  tokens: jax.Array  # int32 [B, J, T]
  position: jax.Array  # int32 [B, J, T]
  valid: jax.Array  # bool [B, J, T]: the real tokens


@struct.dataclass
class Rows:
  """The real tokens of prompts and responses, and where each lies in their padded blocks."""

  prompt: Lists
  response: Lists
  tokens: jax.Array  # int32 [S, N]
  position: jax.Array  # int32 [S, N]
  row: jax.Array  # int32 [S, M]: of each slot of a group's prompts, then responses; N on padding
  slot: jax.Array  # int32 [S, N]: of each row; M on rows that are not used
  overflow: jax.Array  # bool []: there are more tokens than rows, and some are missing

  def gather(self, of_prompt: jax.Array, of_response: jax.Array) -> jax.Array:
    """The real ones of [B, J, P, ...] and [B, K, T, ...], as rows [S, N, ...]."""
    return _move(_slots(len(self.row), of_prompt, of_response), self.slot, self.row)

  def of_response(self, x: Array) -> jax.Array:
    """[B, K, T, ...] as rows, 0 on those of prompts."""
    x = jnp.asarray(x)
    return self.gather(jnp.zeros((*self.prompt.tokens.shape, *x.shape[3:]), x.dtype), x)

  def spread(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows [S, N, ...] as [B, J, P, ...] and [B, K, T, ...], 0 on padding."""
    x = _move(x, self.row, self.slot)
    edge = self.prompt.tokens.size // len(self.row)
    parts = (x[:, :edge], self.prompt), (x[:, edge:], self.response)
    return tuple(part.reshape(*of.tokens.shape, *x.shape[2:]) for part, of in parts)  # type: ignore[return-value]

  def scopes(self, config: Config) -> tuple[blocks.Scope, blocks.Scope]:
    """What the prompts' tokens see, and the responses'."""
    prefix = self.prompt.position, self.prompt.valid
    own = blocks.scope(config, *prefix)
    return own, blocks.scope(config, self.response.position, self.response.valid, prefix)


def pack(prompt: Lists, response: Lists, groups: int = 1, size: int = 0) -> Rows:
  """Rows of `groups` contiguous parts of the prompts, `size` rows each (0: as many as slots).

  Where a part has more real tokens than that, `overflow` is set: what is computed is wrong then.
  """
  real = _slots(groups, prompt.valid, response.valid)
  slots = real.shape[1]
  size = min(size, slots) or slots
  number = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), real.shape)
  slot = jnp.sort(jnp.where(real, number, slots), axis=1)[:, :size]
  put = lambda row, slot: row.at[slot].set(number[0, :size], mode="drop")  # noqa: E731
  row = jax.vmap(put)(jnp.full_like(number, size), slot)
  take = lambda x, y: _take(_slots(groups, x, y), slot)  # noqa: E731
  return Rows(
    prompt=prompt,
    response=response,
    tokens=take(prompt.tokens, response.tokens),
    position=take(prompt.position, response.position),
    row=row,
    slot=slot,
    overflow=jnp.any(jnp.sum(real, axis=1) > size),
  )


def mix(
  config: Config,
  implementation: str,
  rows: Rows,
  scopes: tuple[blocks.Scope, blocks.Scope],
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  past: None,
  inputs: Inputs,
) -> Mixed:
  """`layer.Mix` of rows: prompts see themselves, responses their prompt and themselves."""
  # One by one: joined, heads that lie on several devices would have to be moved between them.
  of_prompt, of_response = zip(*(rows.spread(x) for x in (query, key, value)))
  own, scope = scopes
  q, k, v = of_prompt
  see = lambda scope: blocks.window(scope.own, scope.own_distance, inputs.window)  # noqa: E731
  prompt = blocks.attend(config, implementation, q, attention.Block(k, v, see(own)))
  prefix = attention.Block(k, v, blocks.window(scope.prefix, scope.prefix_distance, inputs.window))
  q, k, v = of_response
  response = blocks.attend(config, implementation, q, attention.Block(k, v, see(scope)), prefix)
  return Mixed(rows.gather(prompt, response), past, None)


def _slots(groups: int, of_prompt: Array, of_response: Array) -> jax.Array:
  """[B, J, P, ...] and [B, K, T, ...] as one [S, M, ...]: a group's prompts, then its responses."""
  flat = lambda x: x.reshape(groups, -1, *x.shape[3:])  # noqa: E731
  return jnp.concatenate([flat(of_prompt), flat(of_response)], axis=1)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
  """x [S, n, ...] at index [S, m], 0 where it is past the end."""
  one = lambda x, index: jnp.take(x, index, axis=0, mode="fill", fill_value=0)  # noqa: E731
  return jax.vmap(one)(x, index)


@jax.custom_vjp
def _move(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
  """x [S, n, ...] at index [S, m], where inverse [S, n] leads back.

  Its transpose is the inverse move: a scatter-add, which it would be otherwise, is slow.
  """
  return _take(x, index)


def _move_fwd(x, index, inverse):
  return _take(x, index), inverse


def _move_bwd(inverse, gradient):
  return _take(gradient, inverse), None, None


_move.defvjp(_move_fwd, _move_bwd)
