"""What keeps a sampled response from repeating itself: transformers' two controls, to the token.

As there, the prompt counts as well as what was sampled, and both act on the logits before the
temperature. Only real tokens count, whatever the padding.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from larpo_jax.types import Array


class History(NamedTuple):
  """The tokens before the next one, real tokens side by side."""

  ids: jax.Array  # int32 [B, K, N]
  there: jax.Array  # bool [B, K, N]: a row of False, then True, then False
  end: jax.Array  # int32 []: the place of the next token


def history(prompt: Array, mask: Array, response: Array, step: Array) -> History:
  """A prompt [B, J, P], padded on either side, and the first `step` of a response [B, K, R]."""
  mask = jnp.asarray(mask, bool)
  order = jnp.argsort(mask, axis=-1, stable=True)  # padding first, then the tokens as they come
  moved = (jnp.take_along_axis(jnp.asarray(x), order, axis=-1) for x in (prompt, mask))
  wide = (*response.shape[:2], prompt.shape[-1])
  ids, there = (jnp.broadcast_to(x, wide) for x in moved)
  written = jax.lax.broadcasted_iota(jnp.int32, response.shape, 2) < step
  return History(
    jnp.concatenate([ids, response], axis=-1),
    jnp.concatenate([there, written], axis=-1),
    prompt.shape[-1] + jnp.asarray(step),
  )


def penalised(logits: jax.Array, past: History, penalty: float) -> jax.Array:
  """Logits [B, K, V] with those of tokens that were there divided, or if negative multiplied.

  CTRL, https://arxiv.org/abs/1909.05858, section 4.1, as transformers' `repetition_penalty` has it.
  """
  seen = _any(logits, past.ids, past.there)
  return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def without_repeats(logits: jax.Array, past: History, size: int) -> jax.Array:
  """Logits [B, K, V], -inf where a token would complete `size` tokens in a row a second time.

  transformers' `no_repeat_ngram_size`.
  """
  before = size - 1
  count = past.ids.shape[-1] - before  # places where so many tokens and one more may stand
  if count < 1:
    return logits
  last = jax.lax.dynamic_slice_in_dim(past.ids, past.end - before, before, axis=-1)
  same = past.there[..., before:]  # the token that followed
  for offset in range(before):
    place = slice(offset, offset + count)
    same &= past.there[..., place] & (past.ids[..., place] == last[..., offset, None])
  return jnp.where(_any(logits, past.ids[..., before:], same), -jnp.inf, logits)


def _any(logits: jax.Array, ids: jax.Array, on: jax.Array) -> jax.Array:
  """bool [B, K, V]: the tokens of ids [B, K, N] that are on."""
  b, k = (jax.lax.broadcasted_iota(jnp.int32, ids.shape, axis) for axis in (0, 1))
  return jnp.zeros(logits.shape, bool).at[b, k, ids].max(on)
