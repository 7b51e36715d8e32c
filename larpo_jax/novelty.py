"""What a round explores of all that has been sampled so far: rounds.novelty on a run's pools."""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from larpo_jax import lookup, stage
from larpo_jax.data import batching, novelty, store
from larpo_jax.session import Session
from larpo_jax.types import Batch


def importance(
  session: Session, pools: Sequence[store.TokenizedData], start: Any
) -> novelty.Importance | None:
  """Of each candidate of each round up to now, in the order of the pools; None without a novelty.

  start are the parameters before the first round, whose hidden states stay the same: no kernel of
  exploration may take a response for a new one because the policy has changed.
  """
  rounds = session.config.rounds
  if rounds.novelty is None:
    return None
  rows = [[pool[place] for place in range(len(pool))] for pool in pools]
  encode = lambda number: states(session, start, pools[number])  # noqa: E731
  sampled = novelty.Sampled(rows, rounds.candidates, encode, session.config.seed)
  return lookup.resolve(rounds.novelty, "larpo_jax.data")(sampled)


def states(session: Session, params: Any, data: store.TokenizedData) -> np.ndarray:
  """The last hidden state of each response at its last token, [N, K, D]; 0 where there is none."""
  width = session.architecture.hidden_size
  found = np.zeros((len(data), data.candidates, width), np.float32)
  feed = dict(batch_size=session.config.data.batch_size, shuffle=False, epochs=1, shapes=1)
  alone = contextlib.nullcontext() if session.lanes is None else session.lanes.alone
  for batch in batching.batches(data, shard=stage.shard(), **feed):
    session.poll()
    placed = session.put(batch)
    with alone, jax.set_mesh(session.mesh):
      hidden = _hidden(session.model, session.whole(params), placed)
    row, hidden = stage.gathered((placed.row, hidden))
    found[row[row >= 0]] = hidden[row >= 0]
  return found


@functools.partial(jax.jit, static_argnums=0)
def _hidden(model: Any, params: Any, batch: Batch) -> jax.Array:
  """float32 [B, K, D] at the last token that is no padding, of the prompt where none follows."""
  shape = batch.response_mask.shape
  prompts = lambda x: jnp.broadcast_to(x, (*shape[:2], x.shape[-1]))  # noqa: E731
  tokens = jnp.concatenate([prompts(batch.prompt), batch.response], axis=-1)
  valid = jnp.concatenate([prompts(batch.prompt_mask), batch.response_mask > 0], axis=-1)
  positions = jnp.maximum(jnp.cumsum(valid, axis=-1) - 1, 0)
  hidden, _ = nnx.merge(model, params)(tokens, positions, valid)
  last = valid.shape[-1] - 1 - jnp.argmax(valid[..., ::-1], axis=-1)  # [B, K]
  return jnp.take_along_axis(hidden, last[..., None, None], axis=2)[:, :, 0].astype(jnp.float32)
