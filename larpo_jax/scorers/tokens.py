"""Log-probs of text: the prompt is computed once for its K responses, and logits never exist."""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from larpo_jax.scorers import _head, _layout
from larpo_jax.sharding import BATCH_AXES
from larpo_jax.types import Batch, LogProbs

CPU_LOGITS = 2**24  # 64 MiB of them at a time, on a CPU
CPU_ROWS = 96  # chunks are multiples; XLA:CPU is a sixth slower on powers of two


def causal(
  model: nnx.GraphDef,
  params: nnx.State,
  batch: Batch,
  *,
  chunk: int = 0,
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
    chunk: how many positions of a device have their logits in memory at a time; 0 for 1024, and
      for fewer on a CPU.
    reference: other parameters of the model, for the field `kl` at every token; no gradient.
    collision: whether the field `collision` is asked for.
  """
  net = nnx.merge(model, params)
  read = _layout.up_to_last(batch.response_mask)
  layout = _layout.pack(batch, batch.response[..., :-1], read)
  mask = jnp.where(layout.response.valid, batch.response_mask, 0.0).astype(jnp.float32)
  groups = len(layout.tokens)
  counted, target = layout.of_response(mask), layout.of_response(batch.response)
  hidden = _on_groups(net.read(layout))
  matrix = _unembedding(net, groups)
  if not chunk:
    fitting = CPU_LOGITS // (CPU_ROWS * net.config.vocab_size)
    chunk = CPU_ROWS * max(1, min(fitting, 3)) if jax.default_backend() == "cpu" else 1024
  head = (net.config.final_softcap, chunk)
  outputs = _head.logprobs(hidden, matrix, target, counted, *head, collision)
  kl = None
  if reference is not None:
    other = nnx.merge(model, jax.lax.stop_gradient(reference))
    fixed = jax.lax.stop_gradient((_on_groups(other.read(layout)), _unembedding(other, groups)))
    kl = _head.divergence(hidden, matrix, *fixed, counted, *head)
  token, entropy, squares, kl = jax.tree.map(lambda x: layout.spread(x)[1], (*outputs, kl))
  # More tokens than the batch says it has: no number is right, so none may look right.
  token = jnp.where(layout.overflow, jnp.nan, token)
  return LogProbs(token=token, mask=mask, entropy=entropy, collision=squares, kl=kl)


def _unembedding(net, groups: int) -> jax.Array:
  """[D, V], of which every device has the whole width of its part."""
  matrix = net.unembed()
  if groups == 1:
    return matrix
  size = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
  split = size > 1 and matrix.shape[1] % size == 0
  spec = PartitionSpec(None, "tensor" if split else None)
  return jax.lax.with_sharding_constraint(matrix, spec)


def _on_groups(x: jax.Array) -> jax.Array:
  """Every device keeps its rows."""
  return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES)) if len(x) > 1 else x
