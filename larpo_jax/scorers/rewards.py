"""Scores of a reward model: what it says of a response, laid out as log-probs are."""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp

from larpo_jax.models import prompts
from larpo_jax.types import Batch, LogProbs


def scalar(model: nnx.GraphDef, params: nnx.State, batch: Batch) -> LogProbs:
  """The score of each response on its last token, so that its sequence "log-prob" is the score.

  The prompt is computed once for its K responses. A response of no tokens is scored on the prompt's
  last token, and its score does not count.

  Args:
    model: graph definition of a `models.heads.Classifier` with one label.
    params: its parameters.
    batch: prompts padded on either side.
  """
  net = nnx.merge(model, params)
  prompt = prompts.prefill(net.transformer, batch.prompt, batch.prompt_mask)
  lists = batch.response.shape[:2]
  last = jnp.broadcast_to(prompt.last, lists)[..., None]  # [B, K, 1]
  length = jnp.broadcast_to(prompt.length, lists)[..., None]
  counted = jnp.asarray(batch.response_mask > 0)
  read = jax.lax.cummax(counted.astype(jnp.int32), axis=2, reverse=True) > 0  # up to the last
  inputs = jnp.concatenate([last, batch.response], axis=-1)  # [B, K, 1 + R]
  positions = length - 1 + jax.lax.broadcasted_iota(jnp.int32, inputs.shape, 2)
  valid = jnp.concatenate([length > 0, read], axis=-1)
  hidden, _ = net.transformer(inputs, jnp.maximum(positions, 0), valid, prefix=prompt.prefix)
  place = jnp.sum(read.astype(jnp.int32), axis=-1)  # of the last token in inputs, [B, K]
  state = jnp.take_along_axis(hidden, place[..., None, None], axis=2)[:, :, 0]  # [B, K, D]
  matrix = net.score[...].astype(state.dtype)
  score = jnp.einsum("bkd,dn->bkn", state, matrix, preferred_element_type=jnp.float32)[..., 0]
  column = jax.lax.broadcasted_iota(jnp.int32, counted.shape, 2)
  mask = jnp.where(column == place[..., None] - 1, 1.0, 0.0)
  return LogProbs(token=score[..., None] * mask, mask=mask)
