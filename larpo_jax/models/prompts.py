"""What a prompt leaves behind for the responses that continue it, scored or sampled."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from larpo_jax.models.layer import Prefix
from larpo_jax.models.transformer import Transformer
from larpo_jax.types import Array


class Prompt(NamedTuple):
  """A computed prompt: all but its last token, which is the first input of every response.

  So input t of a response predicts token t of it, whatever side the prompt is padded on, and the
  hidden states of the prompt are not needed.
  """

  prefix: Prefix  # of the tokens before the last
  last: jax.Array  # int32 [B, J]: the last token; anything where the prompt is empty
  length: jax.Array  # int32 [B, J]: real tokens


def prefill(model: Transformer, prompt: Array, mask: Array) -> Prompt:
  """Runs the model over prompts int [B, J, P] that are padded on either side, mask alike."""
  mask = jnp.asarray(mask, bool)
  count = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)
  length = count[..., -1]
  is_last = mask & (count == length[..., None])
  positions = jnp.maximum(count - 1, 0)
  _, prefix = model(prompt, positions, mask & ~is_last)
  return Prompt(prefix, jnp.sum(jnp.where(is_last, prompt, 0), axis=-1), length)
