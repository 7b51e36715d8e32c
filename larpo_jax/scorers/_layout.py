"""A batch as rows of real tokens, which every scorer of text computes on."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax import sharding
from larpo_jax.models import prompts, rows
from larpo_jax.types import Array, Batch


def pack(batch: Batch, response: Array, read: Array, *, more: int = 0) -> rows.Rows:
  """The prompts and, after each one's last token, the responses [B, K, R], as far as they are read.

  read: bool [B, K, 1 + R], as in `prompts.continued`. more: how many tokens a prompt there are
  beyond what the batch has room for. Each device has the rows of its own prompts.
  """
  prompt = prompts.split(batch.prompt, batch.prompt_mask)
  groups = sharding.groups(len(batch.response))
  size = (batch.room + more) * (len(batch.response) // groups) if batch.room else 0
  return rows.pack(prompt.before, prompts.continued(prompt, response, read), groups, size)


def up_to_last(mask: Array) -> jax.Array:
  """True up to the last position that counts."""
  return jax.lax.cummax(jnp.asarray(mask > 0, jnp.int32), axis=mask.ndim - 1, reverse=True) > 0
