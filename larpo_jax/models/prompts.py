"""A prompt as the responses that continue it see it, scored or sampled.

The last token of a prompt is the first input of every response: so input t of a response predicts
token t of it, whatever side the prompt is padded on, and the prompt's own states are not needed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from larpo_jax.models.blocks import Prefix
from larpo_jax.models.rows import Lists
from larpo_jax.models.transformer import Transformer
from larpo_jax.types import Array


class Prompt(NamedTuple):
  """A prompt but for its last token."""

  before: Lists  # the tokens before the last
  last: jax.Array  # int32 [B, J]: the last token; anything where the prompt is empty
  length: jax.Array  # int32 [B, J]: real tokens, the last included


def split(prompt: Array, mask: Array) -> Prompt:
  """Prompts int [B, J, P] that are padded on either side, mask alike, cut before their last."""
  mask = jnp.asarray(mask, bool)
  count = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)
  length = count[..., -1]
  is_last = mask & (count == length[..., None])
  before = Lists(jnp.asarray(prompt), jnp.maximum(count - 1, 0), mask & ~is_last)
  return Prompt(before, jnp.sum(jnp.where(is_last, prompt, 0), axis=-1), length)


def prefill(model: Transformer, prompt: Prompt) -> Prefix:
  """The keys and values of all but the last token."""
  return model(*prompt.before)[1]


def continued(prompt: Prompt, response: Array, read: Array) -> Lists:
  """The inputs that continue a prompt: its last token, and the response [B, K, R].

  read: bool [B, K, 1 + R], which of them are read, the last token of the prompt among them; that of
  an empty prompt never is.
  """
  lists = response.shape[:2]
  last = jnp.broadcast_to(prompt.last, lists)[..., None]  # [B, K, 1]
  length = jnp.broadcast_to(prompt.length, lists)[..., None]
  tokens = jnp.concatenate([last, response], axis=-1)  # [B, K, 1 + R]
  position = length - 1 + jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 2)
  return Lists(tokens, jnp.maximum(position, 0), (position >= 0) & read)
