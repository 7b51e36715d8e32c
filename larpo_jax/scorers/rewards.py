"""Scores of a reward model: what it says of a response, laid out as log-probs are."""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp

from larpo_jax import sharding
from larpo_jax.models import prompts, rows
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
  prompt = prompts.split(batch.prompt, batch.prompt_mask)
  counted = jnp.asarray(batch.response_mask > 0)
  read = jax.lax.cummax(counted.astype(jnp.int32), axis=2, reverse=True) > 0  # up to the last
  first = jnp.ones((*counted.shape[:2], 1), bool)  # the prompt's last token
  response = prompts.continued(prompt, batch.response, jnp.concatenate([first, read], axis=-1))
  place = jnp.sum(read.astype(jnp.int32), axis=-1)  # of the last token in the inputs, [B, K]
  groups = sharding.groups(len(counted))
  # One token more a response than a scorer of tokens reads.
  size = (batch.room + counted.shape[1] if batch.room else 0) * (len(counted) // groups)
  layout = rows.pack(prompt.before, response, groups, size)
  _, hidden = layout.spread(net.transformer.read(layout))
  state = jnp.take_along_axis(hidden, place[..., None, None], axis=2)[:, :, 0]  # [B, K, D]
  matrix = net.score[...].astype(state.dtype)
  score = jnp.einsum("bkd,dn->bkn", state, matrix, preferred_element_type=jnp.float32)[..., 0]
  column = jax.lax.broadcasted_iota(jnp.int32, counted.shape, 2)
  mask = jnp.where(column == place[..., None] - 1, 1.0, 0.0)
  score = jnp.where(layout.overflow, jnp.nan, score)
  return LogProbs(token=score[..., None] * mask, mask=mask)
