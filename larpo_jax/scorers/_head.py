"""Log-probs from hidden states: the logits of all tokens never exist at once.

Rows that count are packed to the front, and a loop of as many chunks as they fill computes the
logits of one chunk at a time, forward and again backward; so both time and memory follow the
tokens that count, and memory does not grow with their number.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from larpo_jax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def logprobs(
  hidden: Array,
  unembedding: Array,
  target: Array,
  mask: Array,
  vocab_axis: int = 1,
  softcap: float | None = None,
  chunk: int = 1024,
) -> tuple[jax.Array, jax.Array]:
  """Log p(target | hidden) and the entropy of that distribution, 0 where masked.

  Args:
    hidden: [S, N, D]: N rows in each of S groups. Devices that hold different groups do not talk
      to each other but to sum the gradient of the unembedding.
    unembedding: [D, V], or [V, D] with vocab_axis=0 (an embedding tied to it, read as it lies).
    target: int [S, N].
    mask: [S, N], not 0 on the rows that count.
    vocab_axis: the axis of `unembedding` that is the vocabulary.
    softcap: logits become `softcap * tanh(logits / softcap)`.
    chunk: how many rows of each group have their logits in memory at a time.

  Returns:
    float32 [S, N] both, in nats. The entropy has no gradient. Masked rows get a gradient of 0,
    whatever they hold.
  """
  token, entropy, _ = _forward(hidden, unembedding, target, mask, vocab_axis, softcap, chunk)
  return token, entropy


def _forward(hidden, unembedding, target, mask, vocab_axis, softcap, chunk):
  """Log-prob, entropy and log-sum-exp of each row."""
  groups, rows = target.shape
  order, count = _pack(mask, chunk)
  weights = unembedding.astype(hidden.dtype)

  def body(i, outputs):
    at = jax.lax.dynamic_index_in_dim(order, i, 0, keepdims=False)  # [S, C]
    logits, _ = _logits(_take(hidden, at), weights, vocab_axis, softcap)  # [S C, V]
    log_total = jax.nn.logsumexp(logits, axis=-1)
    # Two passes of exp: XLA for CPU is four times slower on one that feeds both sums.
    surprise = log_total[:, None] - logits
    entropy = jnp.sum(jnp.exp(-surprise) * surprise, axis=-1)
    chosen = jnp.take_along_axis(logits, _take(target, at)[:, None], axis=-1)[:, 0]
    new = (chosen - log_total, entropy, log_total)
    return jax.tree.map(lambda out, x: _put(out, at, x), outputs, new)

  zeros = jnp.zeros((groups, rows), jnp.float32)
  return jax.lax.fori_loop(0, count, body, (zeros, zeros, zeros))


def _logprobs_fwd(hidden, unembedding, target, mask, vocab_axis, softcap, chunk):
  outputs = _forward(hidden, unembedding, target, mask, vocab_axis, softcap, chunk)
  token, entropy, log_total = outputs
  return (token, entropy), (hidden, unembedding, target, mask, log_total)


def _logprobs_bwd(vocab_axis, softcap, chunk, residuals, cotangents):
  hidden, unembedding, target, mask, log_total = residuals
  cotangent, _ = cotangents
  order, count = _pack(mask, chunk)
  weights = unembedding.astype(hidden.dtype)

  def body(i, gradients):
    d_hidden, d_weights = gradients
    at = jax.lax.dynamic_index_in_dim(order, i, 0, keepdims=False)  # [S, C]
    rows = _take(hidden, at)
    logits, slope = _logits(rows, weights, vocab_axis, softcap)  # [S C, V]
    probability = jnp.exp(logits - _take(log_total, at)[:, None])
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    hit = column == _take(target, at)[:, None]
    d_logits = _take(cotangent, at)[:, None] * (jnp.where(hit, 1.0, 0.0) - probability) * slope
    d_logits = d_logits.astype(hidden.dtype)
    d_rows = _einsum("nv,vd->nd" if vocab_axis == 0 else "nv,dv->nd", d_logits, weights)
    # Summed over groups after the loop: so devices talk once, not once a chunk.
    of_group = (*at.shape, -1)
    rows, d_logits = rows.reshape(of_group), d_logits.reshape(of_group)
    outer = _einsum("scd,scv->svd" if vocab_axis == 0 else "scd,scv->sdv", rows, d_logits)
    return _put(d_hidden, at, d_rows.astype(hidden.dtype)), d_weights + outer

  zeros = jnp.zeros((len(hidden), *unembedding.shape), jnp.float32)
  d_hidden, d_weights = jax.lax.fori_loop(0, count, body, (jnp.zeros_like(hidden), zeros))
  return d_hidden, jnp.sum(d_weights, axis=0).astype(unembedding.dtype), None, None


logprobs.defvjp(_logprobs_fwd, _logprobs_bwd)


def _logits(rows, weights, vocab_axis, softcap):
  """Float32 logits [S C, V], and their derivative by what the cap was put on."""
  logits = _einsum("nd,vd->nv" if vocab_axis == 0 else "nd,dv->nv", rows, weights)
  if not softcap:
    return logits, jnp.float32(1.0)
  squashed = jnp.tanh(logits / softcap)
  return softcap * squashed, 1.0 - jnp.square(squashed)


def _einsum(spec, x, y):
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _pack(mask, chunk):
  """Row numbers, those that count first, as chunks [N / C, S, C]; and how many chunks to visit.

  A row number past the end stands for no row: it reads zeros and is never written.
  """
  groups, rows = mask.shape
  size = max(1, min(chunk, rows))
  number = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32), mask.shape)
  counted = mask != 0
  order = jnp.sort(jnp.where(counted, number, rows), axis=-1)
  order = jnp.pad(order, ((0, 0), (0, -rows % size)), constant_values=rows)
  most = jnp.max(jnp.sum(counted.astype(jnp.int32), axis=-1))
  return jnp.moveaxis(order.reshape(groups, -1, size), 1, 0), (most + size - 1) // size


def _take(x, at):
  """Rows [S C, ...] of x [S, N, ...]."""
  rows = jax.vmap(lambda x, at: jnp.take(x, at, axis=0, mode="fill", fill_value=0))(x, at)
  return rows.reshape(-1, *x.shape[2:])


def _put(x, at, rows):
  """x [S, N, ...] with those rows replaced."""
  rows = rows.reshape(*at.shape, *x.shape[2:])
  return jax.vmap(lambda x, at, rows: x.at[at].set(rows, mode="drop"))(x, at, rows)
