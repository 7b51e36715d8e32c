"""Scores of a reward model: what it says of a response, laid out as log-probs are."""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp

from larpo_jax.scorers import _layout
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
  counted = jnp.asarray(batch.response_mask > 0)
  read = _layout.up_to_last(counted)
  first = jnp.ones((*counted.shape[:2], 1), bool)  # the prompt's last token
  inputs = jnp.concatenate([first, read], axis=-1)
  # A response's own last token is read too: one more for each than the batch has room for.
  layout = _layout.pack(batch, batch.response, inputs, more=counted.shape[1])
  place = jnp.sum(read.astype(jnp.int32), axis=-1)  # of the last token in the inputs, [B, K]
  _, hidden = layout.spread(net.transformer.read(layout))
  state = jnp.take_along_axis(hidden, place[..., None, None], axis=2)[:, :, 0]  # [B, K, D]
  matrix = net.score[...].astype(state.dtype)
  score = jnp.einsum("bkd,dn->bkn", state, matrix, preferred_element_type=jnp.float32)[..., 0]
  column = jax.lax.broadcasted_iota(jnp.int32, counted.shape, 2)
  mask = jnp.where(column == place[..., None] - 1, 1.0, 0.0)
  score = jnp.where(layout.overflow, jnp.nan, score)
  return LogProbs(token=score[..., None] * mask, mask=mask)


scalar.classifies = True  # type: ignore[attr-defined]
