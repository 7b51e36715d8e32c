"""Attention over padded blocks of tokens: who sees whom, and what stays behind for later tokens.

J is how many token lists a row has: 1 prompt, or K responses that continue it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from larpo_jax.models import attention
from larpo_jax.models.config import Config
from larpo_jax.models.layer import Inputs, Mixed


@struct.dataclass
class Keys:
  """What tokens leave behind for those that continue them."""

  key: jax.Array  # compute dtype [L, B, J, T, G, d], rotated
  value: jax.Array  # compute dtype [L, B, J, T, G, d]
  position: jax.Array  # int32 [B, J, T]
  valid: jax.Array  # bool [B, J, T]


Prefix = Keys


@struct.dataclass
class Past:
  """A decoding buffer of S tokens, of which the first `index` are written."""

  key: jax.Array  # compute dtype [L, B, J, S, G, d]
  value: jax.Array  # compute dtype [L, B, J, S, G, d]
  position: jax.Array  # int32 [B, J, S]
  valid: jax.Array  # bool [B, J, S]
  index: jax.Array  # int32 []


class Scope(NamedTuple):
  """Who sees whom in every layer, but for the windows, and where a past is written."""

  own: jax.Array  # bool [B, J, T, S]
  own_distance: jax.Array | None  # int32 [B, J, T, S]; None without windows
  prefix: jax.Array | None  # bool [B, J', 1, P]
  prefix_distance: jax.Array | None  # int32 [B, J', J / J' * T, P]
  slot: jax.Array | None  # int32 []: where the past is written


def scope(
  config: Config,
  positions: jax.Array,
  valid: jax.Array,
  prefix: tuple[jax.Array, jax.Array] | None = None,
  past: Past | None = None,
) -> Scope:
  """Masks from validity, order and positions; a past has been advanced to this token.

  positions: int32 [B, J, T]; valid: bool alike; prefix: the positions and validity of the prefix,
  [B, J', P].
  """
  tokens = positions.shape[-1]
  if past is None:
    causal = jnp.tril(jnp.ones((1, 1, tokens, tokens), bool))
    own, keys = causal & valid[:, :, None, :], positions
  else:
    own, keys = past.valid[:, :, None, :], past.position
  prefix_mask = own_distance = prefix_distance = None
  if prefix is not None:
    prefix_position, prefix_valid = prefix
    prefix_mask = prefix_valid[:, :, None, :]
    lists, groups = positions.shape[1], prefix_position.shape[1]
    if lists % groups:
      raise ValueError(f"{lists} lists of tokens cannot share {groups} prefixes evenly")
  if config.sliding:
    own_distance = positions[..., :, None] - keys[..., None, :]
    if prefix is not None:
      queries = positions.reshape(*prefix_position.shape[:2], -1)
      prefix_distance = queries[..., :, None] - prefix_position[..., None, :]
  slot = None if past is None else past.index
  return Scope(own, own_distance, prefix_mask, prefix_distance, slot)


def advance(past: Past, positions: jax.Array, valid: jax.Array) -> Past:
  """Notes the token about to be decoded; raises ValueError when there is more than one."""
  if positions.shape[-1] != 1:
    raise ValueError(f"decoding with a past takes one token at a time, not {positions.shape[-1]}")
  start = (0, 0, past.index)
  return dataclasses.replace(
    past,
    position=jax.lax.dynamic_update_slice(past.position, positions, start),
    valid=jax.lax.dynamic_update_slice(past.valid, valid, start),
  )


def mix(config: Config, implementation: str, scope: Scope, query, key, value, past, inputs: Inputs):
  """`layer.Mix` of blocks [B, J, T, heads, d]; what is left behind is this layer's key, value."""
  keys = None
  if past is None:
    keys = key, value
  else:  # the buffers of all layers are carried, so that the compiler updates them in place
    start: Any = (inputs.layer, 0, 0, scope.slot, 0, 0)
    past = tuple(
      jax.lax.dynamic_update_slice(buffer, new[None].astype(buffer.dtype), start)
      for buffer, new in zip(past, (key, value))
    )
    key, value = (buffer[inputs.layer].astype(query.dtype) for buffer in past)
  own = attention.Block(key, value, window(scope.own, scope.own_distance, inputs.window))
  prefix = None
  if inputs.prefix is not None:
    before, values = (part.astype(query.dtype) for part in inputs.prefix)
    seen = window(scope.prefix, scope.prefix_distance, inputs.window)
    prefix = attention.Block(before, values, seen)
  return Mixed(attend(config, implementation, query, own, prefix), past, keys)


def attend(config: Config, implementation: str, query, own, prefix=None) -> jax.Array:
  """`attention.attend` as the model does it."""
  return attention.attend(
    query,
    own,
    prefix,
    scale=config.query_scale,
    softcap=config.attention_softcap,
    implementation=implementation,
  )


def window(mask, distance: jax.Array | None, size: jax.Array):
  """The mask without what lies further back than a window of that size."""
  return mask if distance is None else mask & (distance < size)
