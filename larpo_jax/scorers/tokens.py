"""Log-probs of text: the prompt is computed once for its K responses, and logits never exist."""

from __future__ import annotations

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from larpo_jax.models import prompts
from larpo_jax.scorers import _head
from larpo_jax.sharding import BATCH_AXES
from larpo_jax.types import Array, Batch, LogProbs


def causal(
  model: nnx.GraphDef,
  params: nnx.State,
  batch: Batch,
  *,
  chunk: int = 1024,
  reference: nnx.State | None = None,
  collision: bool = False,
) -> LogProbs:
  """Log p(token | prompt and the response so far) of a left-to-right model, and the entropy there.

  What continues the prompt is its last token and then the response without its own last token,
  so that each input predicts the token at its place; the rest of the prompt is a shared prefix.
  The first token of a response to an empty prompt is predicted from nothing: it does not count.

  Args:
    model: graph definition of a `models.transformer.Transformer`.
    params: its parameters.
    batch: prompts padded on either side.
    chunk: how many positions of a device have their logits in memory at a time.
    reference: other parameters of the model, for the field `kl` at every token; no gradient.
    collision: whether the field `collision` is asked for.
  """
  net = nnx.merge(model, params)
  hidden, mask = _hidden(net, batch)
  groups, head = _groups(batch.response.shape[0]), (net.config.final_softcap, chunk)
  states, matrix, vocab_axis = _split(net, hidden, groups)
  flat = mask.reshape(groups, -1)
  target = jnp.asarray(batch.response).reshape(groups, -1)
  outputs = _head.logprobs(states, matrix, target, flat, vocab_axis, *head, collision)
  token, entropy, squares = jax.tree.map(lambda x: x.reshape(mask.shape), outputs)
  kl = None
  if reference is not None:
    other = nnx.merge(model, jax.lax.stop_gradient(reference))
    fixed = jax.lax.stop_gradient(_split(other, _hidden(other, batch)[0], groups)[:2])
    kl = _head.divergence(states, matrix, *fixed, flat, vocab_axis, *head).reshape(mask.shape)
  return LogProbs(token=token, mask=mask, entropy=entropy, collision=squares, kl=kl)


def _hidden(net, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """The states that predict each response token [B, K, R, D], and which tokens count [B, K, R]."""
  prompt = prompts.prefill(net, batch.prompt, batch.prompt_mask)
  lists = batch.response.shape[:2]
  last = jnp.broadcast_to(prompt.last, lists)[..., None]  # [B, K, 1]
  length = jnp.broadcast_to(prompt.length, lists)[..., None]
  inputs = jnp.concatenate([last, batch.response[..., :-1]], axis=-1)  # [B, K, R]
  positions = length - 1 + jax.lax.broadcasted_iota(jnp.int32, inputs.shape, 2)
  predicted = positions >= 0  # but for the first token after an empty prompt
  mask = jnp.where(predicted, batch.response_mask, 0.0).astype(jnp.float32)
  valid = predicted & _up_to_last(batch.response_mask)
  hidden, _ = net(inputs, jnp.maximum(positions, 0), valid, prefix=prompt.prefix)
  return hidden, mask


def _split(net, hidden: jax.Array, groups: int) -> tuple[jax.Array, jax.Array, int]:
  """States as [S, N, D] by the devices that hold them, the unembedding, and its vocabulary axis."""
  vocab_axis = 0 if net.config.tie_embeddings else 1
  matrix = net.embedding[...] if net.config.tie_embeddings else net.head[...]
  hidden = hidden.reshape(groups, -1, hidden.shape[-1])
  if groups > 1:  # every device keeps its rows, and has the whole width of its part of the matrix
    hidden = jax.lax.with_sharding_constraint(hidden, PartitionSpec(BATCH_AXES))
    matrix = jax.lax.with_sharding_constraint(matrix, _split_vocab(matrix.shape, vocab_axis))
  return hidden, matrix, vocab_axis


def _up_to_last(mask: Array) -> jax.Array:
  """True up to the last position that counts."""
  return jax.lax.cummax(jnp.asarray(mask > 0, jnp.int32), axis=mask.ndim - 1, reverse=True) > 0


def _groups(batch: int) -> int:
  """How many devices split the leading axis under `jax.set_mesh`; 1 without, or if they cannot."""
  mesh = jax.sharding.get_abstract_mesh()
  count = math.prod(mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape)
  return 1 if batch % count else count


def _split_vocab(shape: tuple[int, ...], vocab_axis: int) -> PartitionSpec:
  size = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
  axes: list[str | None] = [None, None]
  if size > 1 and shape[vocab_axis] % size == 0:
    axes[vocab_axis] = "tensor"
  return PartitionSpec(*axes)
